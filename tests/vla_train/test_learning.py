"""Training learns: the real model, the real rollout and the real trainer, on a small env that needs its eyes and its words.

As in the papers, a policy that supervised training left poor is improved by reinforcement learning from 0/1 rewards alone.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from corners_env import CornersVectorEnv
from corners_policy import ACTION_DIM, CHUNK_SIZE, save_untrained
from torch import Tensor

from vla_train.algo import advantages
from vla_train.algo.filters import has_signal
from vla_train.config import AlgoConfig, EnvConfig, OptimConfig, PolicyConfig, RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.pipeline.episodes import PromptStream
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.simplevla_oft.build import build_policy
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.types import EnvDescription, EpisodeSpec, Observation

ENV = EnvConfig(id="corners_env:Corners-v0", num_workers=2, envs_per_worker=64, success="terminated")
ROLLOUT = RolloutConfig(groups_per_iteration=16, group_size=8, temperature=1.6, max_attempts=1.5, deterministic=True)
OPTIM = OptimConfig(learning_rate=1.5e-3, minibatch_trajectories=32, microbatch_rows=256)
ITERATIONS = 20
SUPERVISED_STEPS = 12
"""A fifth of what would solve the task."""
HELD_OUT = [
    EpisodeSpec(group_id=0, sample_id=index, task_id=0, init_state_id=-1, seed=10_000_000 + index) for index in range(100)
]

pytestmark = pytest.mark.usefixtures("one_thread")


def load(folder: Path) -> SimpleVLAOFTPolicy:
    bound = np.ones(ACTION_DIM, np.float32)
    config = PolicyConfig(checkpoint=str(folder), chunk_size=CHUNK_SIZE, device="cpu", dtype="float32")
    return build_policy(config, EnvDescription(observations={}, action_low=-bound, action_high=bound), seed=0)


def imitate(policy: SimpleVLAOFTPolicy, *, steps: int) -> None:
    """Supervised training on the first decisions of episodes that go straight to the right corner."""
    weights = [parameter for parameter in policy.trainable_module().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    env = CornersVectorEnv(64, chunk_size=CHUNK_SIZE)
    for step in range(steps):
        seen, _ = env.reset(seed=range(64 * step, 64 * (step + 1)))
        actions = np.repeat(env.corners[:, None], CHUNK_SIZE, axis=1)
        observation = Observation(arrays={"image": seen["image"]}, instructions=seen["instruction"])
        tokens = torch.from_numpy(policy.codec.encode(actions))
        logprobs = policy.evaluate(observation, {"token_ids": tokens}, temperature=1.0)["logprobs"]
        optimizer.zero_grad()
        (-logprobs.mean()).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def poor_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint."""
    folder = tmp_path_factory.mktemp("poor") / "checkpoint"
    save_untrained(folder, seed=0)
    policy = load(folder)
    imitate(policy, steps=SUPERVISED_STEPS)
    policy.save_pretrained(str(folder))
    return folder


def success_rates(checkpoint: Path) -> tuple[list[float], list[float]]:
    """Train; returns the success of every iteration's episodes, and of greedy episodes on other starts before and after."""
    workers = make_workers(ENV, chunk_size=CHUNK_SIZE)
    policy, algo = load(checkpoint), AlgoConfig()
    rollout = Rollout(ROLLOUT, policy=policy, workers=workers, timeline=Timeline(), seed=0)
    trainer = GroupTrainer(OPTIM, algo, policy=policy, temperature=ROLLOUT.temperature, total_steps=1, seed=0)
    prompts = PromptStream([0], {}, group_size=ROLLOUT.group_size, train_fraction=0.8, split_seed=0, seed=0)

    def greedy() -> float:
        return float(np.mean([trajectory.success for trajectory in rollout.play(HELD_OUT, temperature=0.0)]))

    sampled, held_out = [], [greedy()]
    try:
        for iteration in range(ITERATIONS):
            result = rollout.collect(prompts, lambda group: has_signal(group, ROLLOUT, algo))
            sampled.append(result.stats.success_rate)
            metrics = trainer.update(result.groups, iteration=iteration)
            assert metrics.loss_metrics["sampling_gap"] < 1e-4, "training and sampling disagree about the same weights"
            trainer.push_weights(policy)
        held_out.append(greedy())
    finally:
        rollout.close()
    return sampled, held_out


def negated(estimator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda rewards, group_index: -estimator(rewards, group_index)


@pytest.mark.parametrize("sign", [1, -1])
def test_success_rises_from_rewards_alone_and_not_with_the_sign_of_the_advantage_flipped(
    sign: int, poor_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sign < 0:
        monkeypatch.setattr(advantages, "grpo", negated(advantages.grpo))
    sampled, held_out = success_rates(poor_policy)
    start, end = sampled[0], float(np.mean(sampled[-3:]))
    assert 0.05 < start < 0.4
    learnt = end > start + 0.35 and held_out[1] > held_out[0]
    assert learnt == (sign > 0), f"sampled {sampled}, greedy on held-out starts {held_out}"
    if sign < 0:
        assert end < start
