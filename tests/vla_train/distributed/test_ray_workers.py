"""Env groups and policies as Ray actors: the same episodes, the same faults, weights by version."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.workers import WorkerError, make_workers
from vla_train.types import EpisodeSpec, Group, Observation, PolicyOutput

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def make_rollout(env: EnvConfig, policy: Any = None) -> Rollout:
    workers = make_workers(env, chunk_size=DrawingPolicy.chunk_size, seed=0)
    config = RolloutConfig(groups_per_iteration=2, group_size=4, max_attempts=5.0, deterministic=True)
    return Rollout(config, policy=policy or DrawingPolicy(), workers=workers, timeline=Timeline(), seed=11)


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in itertools.count())


def mixed(group: Group) -> bool:
    return 0 < group.success_rate < 1


@pytest.mark.parametrize("fault", ["", "raise", "hang", "nan", "shape", "die"])
def test_ray_workers_play_the_same_episodes_with_and_without_faults(fault: str, tmp_path: Path) -> None:
    kwargs = {"fault": fault, "marker": str(tmp_path)}
    env = drift_config(worker="ray", kwargs=kwargs, step_timeout_s=3.0 if fault == "hang" else 60.0)
    rollout = make_rollout(env)
    try:
        result = rollout.collect(prompts(), mixed)
    finally:
        rollout.close()
    assert [group.group_id for group in result.groups] == [4, 6]
    for group in result.groups:
        for trajectory in group.trajectories:
            assert_played_as_alone(trajectory, seed=11)
    assert result.stats.worker_restarts == (1 if fault else 0)


def test_a_ray_worker_that_keeps_dying_stops_the_run_with_the_cause() -> None:
    rollout = make_rollout(drift_config(worker="ray", kwargs={"fault": "die"}, max_restarts=0))
    try:
        with pytest.raises(WorkerError, match=r"actor of env group \d died"):
            rollout.collect(prompts(), mixed)
    finally:
        rollout.close()


def test_an_env_that_cannot_be_made_in_an_actor_is_the_users_error() -> None:
    with pytest.raises(ValueError, match="Nonsense"):
        make_workers(drift_config(worker="ray", id="Nonsense-v0"), chunk_size=3, seed=0)


def test_more_env_groups_than_the_cluster_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="'sim'"):
        make_workers(drift_config(worker="ray", num_groups=3), chunk_size=3, seed=0)


class WeighedPolicy(DrawingPolicy):
    """Says its weight in every token."""

    weight = 0.0

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        output = super().act(observation, uniforms=uniforms, temperature=temperature)
        output.logprobs[:] = self.weight
        return output

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        self.weight, self.version = float(weights["weight"].mean()), version


def test_policy_replicas_share_batches_and_take_weights_by_version() -> None:
    import torch

    from vla_train.distributed.ray import make_rollout_policy

    policy = make_rollout_policy(functools.partial(WeighedPolicy, seconds_per_call=0.0), replicas=2)
    rollout = make_rollout(drift_config(), policy)
    try:
        for version in (1, 2):
            policy.load_weights({"weight": torch.full((1000,), float(version))}, version=version)
            assert policy.version == version
            result = rollout.collect(prompts(), mixed)
            for group in result.groups:
                for trajectory in group.trajectories:
                    assert (trajectory.policy_versions == version).all()
                    assert (trajectory.logprobs == version).all()
    finally:
        rollout.close()
        policy.close()  # type: ignore[attr-defined]
