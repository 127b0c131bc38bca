"""Our server, played by our own client: the same episodes as without either, in both protocols."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from served import serving

from vla_train.config import PolicyConfig, RolloutConfig
from vla_train.envs.worker import EnvWorker
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.factory import policy_factory
from vla_train.recipes.demo import demo
from vla_train.serving.config import ServeConfig
from vla_train.types import EpisodeSpec, Trajectory

K = 8
SPECS = [
    EpisodeSpec(group_id=number, sample_id=0, task_id=33, init_state_id=state, seed=0) for number, state in enumerate((1, 7))
]
ENV = replace(demo().env, num_workers=1, envs_per_worker=2, max_episode_steps=2 * K)
LOCAL = replace(demo().policy, device="cpu", checkpoint="demo")


def workers_of(chunk_size: int) -> Sequence[EnvWorker]:
    return make_workers(ENV, chunk_size=chunk_size)


def played(config: PolicyConfig, workers: Sequence[EnvWorker]) -> Sequence[Trajectory]:
    """Two short episodes side by side, greedy."""
    policy = policy_factory(config)(config, workers[0].description, seed=0)
    rollout = Rollout(RolloutConfig(), policy=policy, workers=workers, timeline=Timeline(), seed=0)
    found = {trajectory.spec.group_id: trajectory for trajectory in rollout.play(SPECS, temperature=0.0)}
    getattr(policy, "close", lambda: None)()
    return [found[number] for number in sorted(found)]


def through(protocol: Literal["vla-eval", "openpi"], workers: Sequence[EnvWorker], *, chunk_size: int) -> Sequence[Trajectory]:
    config = ServeConfig(checkpoint="demo", protocol=protocol, port=0, policy=replace(LOCAL, checkpoint=None))
    with serving(config) as url:
        remote = PolicyConfig(factory="remote", url=url, chunk_size=chunk_size, kwargs={"protocol": protocol})
        return played(remote, workers)


def require_equal(direct: Sequence[Trajectory], served: Sequence[Trajectory], *, chunk_size: int) -> None:
    assert len(served) == len(direct) == len(SPECS)
    for here, there in zip(direct, served, strict=True):
        assert (here.success, here.length, here.truncated) == (there.success, there.length, there.truncated)
        # What is seen at a decision is the same to the last bit, so what was done before it was, too.
        np.testing.assert_array_equal(here.observations["image"], there.observations["image"][:: K // chunk_size])


def test_episodes_through_a_server_are_those_of_the_checkpoint() -> None:
    workers = workers_of(K)
    try:
        direct, by_chunks = played(LOCAL, workers), through("openpi", workers, chunk_size=K)
    finally:
        for worker in workers:
            worker.close()
    workers = workers_of(1)
    try:
        by_actions = through("vla-eval", workers, chunk_size=1)
    finally:
        for worker in workers:
            worker.close()
    first, second = (trajectory.observations["image"][1] for trajectory in direct)
    assert not np.array_equal(first, second)
    require_equal(direct, by_chunks, chunk_size=K)
    require_equal(direct, by_actions, chunk_size=1)
