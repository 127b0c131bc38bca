"""Real LIBERO tasks: what the pipeline plays is, to the bit, what a plain loop over one env plays."""

import itertools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from pipeline_envs import DrawingPolicy, fields_of, make_spec

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec, Observation, Trajectory

ENV = {"suite": "libero_spatial", "task_ids": [0, 1], "detail": "fast", "image_size": 64, "max_episode_steps": 20}
SEED = 5
GROUP_SIZE = 2


class ArmPolicy(DrawingPolicy):
    """Seven actions, eight at once."""

    chunk_size = 8
    action_dim = 7


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    for group in itertools.count():
        start = {"task_id": group % 2, "init_state_id": group // 2}
        yield tuple(make_spec(group, sample, **start) for sample in range(GROUP_SIZE))


class PlainLoop:
    """One env, one episode after the other."""

    def __init__(self) -> None:
        self.envs = gym.make_vec("Libero-v0", num_envs=1, chunk_size=8, autoreset_mode=AutoresetMode.DISABLED, **ENV)
        self.policy = ArmPolicy()

    def play(self, spec: EpisodeSpec) -> dict[str, Any]:
        start = {"task_id": np.array([spec.task_id]), "init_state_id": np.array([spec.init_state_id])}
        observation, _ = self.envs.reset(options=start)
        decisions: list[tuple[Any, ...]] = []
        ended = False
        while not ended:
            seen = Observation(arrays={"image": observation["image"]}, instructions=observation["instruction"])
            uniforms = sampling_numbers(SEED, spec, len(decisions), 56)[None]
            output = self.policy.act(seen, uniforms=uniforms, temperature=1.0)
            observation, reward, terminated, truncated, info = self.envs.step(output.actions)
            steps = int(info["num_steps"][0])
            decisions.append(
                (
                    seen["image"][0],
                    output.decision["token_ids"][0],
                    output.decision["logprobs"][0],
                    steps,
                    float(reward[0]),
                )
            )
            ended = bool(terminated[0] or truncated[0])
        images, token_ids, logprobs, num_steps, rewards = (np.array(column) for column in zip(*decisions, strict=True))
        return {
            "images": images,
            "token_ids": token_ids,
            "logprobs": logprobs,
            "num_steps": num_steps,
            "rewards": rewards,
            "success": bool(terminated[0]),
            "truncated": bool(truncated[0]),
            "instruction": seen.instructions[0],
        }


@pytest.fixture(scope="module")
def plain_loop() -> Iterator[PlainLoop]:
    loop = PlainLoop()
    yield loop
    loop.envs.close()


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["thread", "process"])
def test_pipelined_libero_is_a_plain_loop_over_libero(worker: Any, plain_loop: PlainLoop) -> None:
    kwargs = {name: str(value) for name, value in ENV.items() if name != "max_episode_steps"}
    env = EnvConfig(kwargs=kwargs, num_workers=2, envs_per_worker=3, worker=worker, max_episode_steps=20)
    timeline = Timeline()
    rollout = Rollout(
        RolloutConfig(groups_per_iteration=4, group_size=GROUP_SIZE, deterministic=True),
        policy=ArmPolicy(),
        workers=make_workers(env, chunk_size=8),
        timeline=timeline,
        seed=SEED,
    )
    try:
        groups = rollout.collect(prompts(), lambda group: True).groups
    finally:
        rollout.close()
    drawn = [span for span in timeline.spans() if span.kind == "render"]
    assert {span.resource for span in drawn} == {"env 0", "env 1"}
    trajectories: list[Trajectory] = [trajectory for group in groups for trajectory in group.trajectories]
    assert [trajectory.spec for trajectory in trajectories] == [s for specs in itertools.islice(prompts(), 4) for s in specs]
    assert {tuple(trajectory.num_steps.tolist()) for trajectory in trajectories} == {(8, 8, 4)}
    for trajectory in trajectories:
        for name, expected in plain_loop.play(trajectory.spec).items():
            np.testing.assert_array_equal(fields_of(trajectory)[name], expected, err_msg=f"{name} of {trajectory.spec}")
