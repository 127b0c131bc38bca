"""Whatever the timing, the numbers and the faults: the same groups, and every decision by the policy version that it names."""

import functools
import itertools
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec, play_alone

from vla_train.config import RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec, Group, Observation, PolicyOutput

SEED = 11


class ChangingPolicy(DrawingPolicy):
    """Becomes another version with every call, and remembers which version decided on which numbers."""

    def __init__(self, jitter_s: float) -> None:
        super().__init__()
        self.decided: dict[int, set[float]] = defaultdict(set)
        self._jitter_s = jitter_s

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        assert uniforms is not None
        time.sleep(random.uniform(0, self._jitter_s))
        self.version += 1
        self.decided[self.version].update(uniforms[:, 0].tolist())
        return super().act(observation, uniforms=uniforms, temperature=temperature)


def prompts(group_size: int) -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(group_size)) for group in itertools.count())


def mixed(group: Group) -> bool:
    return 0 < group.success_rate < 1


@functools.cache
def succeeds(group_id: int, sample_id: int) -> bool:
    return bool(play_alone(make_spec(group_id, sample_id), seed=SEED)["success"])


def groups_with_signal(group_size: int) -> Iterator[int]:
    for group_id in itertools.count():
        if 0 < sum(succeeds(group_id, sample_id) for sample_id in range(group_size)) < group_size:
            yield group_id


@given(
    env=st.sampled_from([("Drift-v0", {}), ("Drift-v0", {"vectorization_mode": "sync"}), ("NextStepDrift-v0", {})]),
    num_workers=st.integers(1, 4),
    envs_per_worker=st.integers(1, 5),
    group_size=st.integers(2, 4),
    target=st.integers(1, 3),
    max_policy_batch=st.integers(1, 12),
    max_wait_s=st.sampled_from([0.0, 0.003]),
    deterministic=st.booleans(),
    slow_env=st.sampled_from([0.0, 0.001]),
    slow_policy=st.sampled_from([0.0, 0.003]),
    faults=st.integers(0, 2),
)
@settings(deadline=None, max_examples=15)
def test_timing_decides_nothing_but_the_time(
    env: tuple[str, dict[str, str]],
    num_workers: int,
    envs_per_worker: int,
    group_size: int,
    target: int,
    max_policy_batch: int,
    max_wait_s: float,
    deterministic: bool,
    slow_env: float,
    slow_policy: float,
    faults: int,
) -> None:
    env_id, kwargs = env
    kwargs = {**kwargs, "jitter_s": str(slow_env)}
    policy = ChangingPolicy(slow_policy)
    with tempfile.TemporaryDirectory() as marker:
        if faults and env_id == "Drift-v0":
            kwargs |= {"fault": "raise", "fault_times": str(faults), "marker": marker}
        config = drift_config(
            id=f"pipeline_envs:{env_id}", kwargs=kwargs, num_workers=num_workers, envs_per_worker=envs_per_worker
        )
        rollout = Rollout(
            RolloutConfig(
                groups_per_iteration=target,
                group_size=group_size,
                max_policy_batch=max_policy_batch,
                max_wait_s=max_wait_s,
                max_attempts=50.0,
                deterministic=deterministic,
            ),
            policy=policy,
            workers=make_workers(config, chunk_size=DrawingPolicy.chunk_size),
            timeline=Timeline(),
            seed=SEED,
        )
        try:
            source = prompts(group_size)
            groups = [group for _ in range(2) for group in rollout.collect(source, mixed).groups]
        finally:
            rollout.close()
    assert [group.group_id for group in groups] == list(itertools.islice(groups_with_signal(group_size), 2 * target))
    assert max(policy.batch_sizes) <= max_policy_batch
    for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
        assert_played_as_alone(trajectory, seed=SEED)
        assert (np.diff(trajectory.policy_versions) > 0).all()
        for decision, version in enumerate(trajectory.policy_versions.tolist()):
            numbers = sampling_numbers(SEED, trajectory.spec, decision, policy.chunk_size * policy.action_dim)
            assert numbers[0] in policy.decided[version], "another version decided this"
