"""A policy of quite another kind goes through workers, rollout, checkpoints and trainer: none of them looks into its decisions.

It reads the image and one more key, draws noise and carries it through a few steps of a flow; of each chunk there is one
log-prob.
"""

from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np
import pytest
import torch
from pipeline_envs import drift_config, make_spec
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_train.config import AlgoConfig, OptimConfig, RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.types import EpisodeSpec, Observation, PolicyOutput

FLOW_STEPS, CHUNK_SIZE, ACTION_DIM = 2, 3, 2


class FlowPolicy:
    """x_0 is noise; each step adds a learnt velocity and a little noise more; the last x is the chunk."""

    chunk_size, action_dim = CHUNK_SIZE, ACTION_DIM
    observation_keys = ("image", "position")
    num_uniforms = (FLOW_STEPS + 1) * CHUNK_SIZE * ACTION_DIM

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.version = 0
        self.seen: list[set[str]] = []
        self._velocity = nn.Linear(CHUNK_SIZE * ACTION_DIM + 2, CHUNK_SIZE * ACTION_DIM)

    def _mean(self, x: Tensor, observation: Observation) -> Tensor:
        brightness = torch.from_numpy(observation["image"]).float().mean((1, 2, 3))[:, None] / 255
        return x + 0.3 * self._velocity(torch.cat([x, torch.from_numpy(observation["position"]), brightness], 1))

    @torch.no_grad()
    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        self.seen.append(set(observation.arrays))
        rows = len(observation)
        numbers = np.full((rows, self.num_uniforms), 0.5, np.float32) if uniforms is None else uniforms
        noise = torch.special.ndtri(torch.from_numpy(numbers).clamp(1e-6, 1 - 1e-6)).view(rows, FLOW_STEPS + 1, -1)
        path = [noise[:, 0]]
        for step in range(FLOW_STEPS):
            path.append(self._mean(path[-1], observation) + 0.3 * temperature * noise[:, step + 1])
        chain = torch.stack(path, 1)
        return PolicyOutput(
            actions=chain[:, -1].view(rows, CHUNK_SIZE, ACTION_DIM).clamp(-1, 1).numpy(),
            decision={"chain": chain.numpy(), "logprobs": self._logprobs(chain, observation, temperature).numpy()},
            policy_version=self.version,
        )

    def _logprobs(self, chain: Tensor, observation: Observation, temperature: float) -> Tensor:
        means = torch.stack([self._mean(chain[:, step], observation) for step in range(FLOW_STEPS)], 1)
        return torch.distributions.Normal(means, 0.3 * temperature).log_prob(chain[:, 1:]).sum((1, 2))

    def evaluate(self, observation: Observation, decision: Mapping[str, Tensor], *, temperature: float) -> dict[str, Tensor]:
        return {"logprobs": self._logprobs(decision["chain"], observation, temperature)}

    def trainable_module(self) -> nn.Module:
        return self._velocity

    def load_weights(self, weights: Mapping[str, Tensor], *, version: int) -> None:
        self._velocity.load_state_dict(weights)
        self.version = version

    def save_pretrained(self, folder: str) -> None:
        save_file(self._velocity.state_dict(), f"{folder}/model.safetensors")


class BlindPolicy(FlowPolicy):
    """Reads the position alone."""

    observation_keys = ("position",)  # type: ignore[assignment]

    def _mean(self, x: Tensor, observation: Observation) -> Tensor:
        position = torch.from_numpy(observation["position"])
        return x + 0.3 * self._velocity(torch.cat([x, position, torch.zeros_like(position)], 1))


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in count())


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_a_flow_with_proprioception_is_played_kept_and_trained(worker: str) -> None:
    policy = FlowPolicy()
    config = RolloutConfig(groups_per_iteration=6, group_size=4, temperature=1.0)
    rollout = Rollout(
        config,
        policy=policy,
        workers=make_workers(drift_config(worker=worker), chunk_size=CHUNK_SIZE),
        timeline=Timeline(),
        seed=0,
    )
    try:
        groups = rollout.collect(prompts(), lambda group: 0 < group.success_rate < 1).groups
        (episode,) = rollout.play([make_spec(99)], temperature=0.0)
        state = rollout.state_dict()
        rollout.load_state_dict(state)
        again = rollout.state_dict()
    finally:
        rollout.close()
    assert set().union(*policy.seen) == {"image", "position"}
    assert set(episode.observations) == {"image", "position"}
    trajectory = groups[0].trajectories[0]
    assert trajectory.decisions["chain"].shape == (len(trajectory), FLOW_STEPS + 1, CHUNK_SIZE * ACTION_DIM)
    assert trajectory.decisions["logprobs"].shape == (len(trajectory),)
    assert state.keys() == again.keys() >= {"observations/position", "decisions/chain"}

    trainer = GroupTrainer(OptimConfig(learning_rate=1e-3), AlgoConfig(), policy=policy, temperature=1.0, total_steps=1, seed=0)
    metrics = trainer.update(groups, iteration=0)
    assert metrics.loss_metrics["sampling_gap"] < 1e-4
    assert "entropy" not in metrics.loss_metrics
    change: dict[bool, list[float]] = {True: [], False: []}
    for member in (member for group in groups for member in group.trajectories):
        observation = Observation(arrays=member.observations, instructions=(member.instruction,) * len(member))
        decision = {name: torch.from_numpy(array) for name, array in member.decisions.items()}
        new = policy.evaluate(observation, decision, temperature=1.0)["logprobs"].detach().numpy()
        change[member.success].append(float((new - member.decisions["logprobs"]).mean()))
    assert np.mean(change[True]) > np.mean(change[False])


def test_an_evaluation_records_images_for_a_policy_that_reads_none_and_training_after_it_does_not() -> None:
    policy = BlindPolicy()
    workers = make_workers(drift_config(), chunk_size=CHUNK_SIZE)
    config = RolloutConfig(groups_per_iteration=3, group_size=4, temperature=1.0)
    rollout = Rollout(config, policy=policy, workers=workers, timeline=Timeline(), seed=0)
    stream, trained = prompts(), []
    try:
        for _ in range(3):
            trained += rollout.collect(stream, lambda group: True).groups
            played = list(rollout.play((make_spec(100 + index) for index in range(5)), temperature=0.0))
            assert all(set(episode.observations) == {"image", "position"} for episode in played)
            rollout.prefetch(stream)
    finally:
        rollout.close()
    assert set().union(*policy.seen) == {"position"}
    assert all(set(member.observations) == {"position"} for group in trained for member in group.trajectories)


def test_a_policy_that_reads_what_the_env_does_not_observe_is_refused_before_anything_is_played() -> None:
    policy = FlowPolicy()
    policy.observation_keys = ("image", "wrist_image")  # type: ignore[assignment]
    workers = make_workers(drift_config(num_workers=1), chunk_size=CHUNK_SIZE)
    try:
        with pytest.raises(ValueError, match="the policy reads 'wrist_image', the env observes image, position"):
            Rollout(RolloutConfig(), policy=policy, workers=workers, timeline=Timeline(), seed=0)
    finally:
        for worker in workers:
            worker.close()
