"""Which groups an iteration plays and keeps, whatever order they finish in."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_envs import make_spec

from vla_train.pipeline.dynamic_sampling import DynamicSampling
from vla_train.pipeline.group_store import pack_groups, unpack_groups
from vla_train.types import EpisodeSpec, Trajectory


def make_trajectory(spec: EpisodeSpec, *, success: bool = True, length: int = 2) -> Trajectory:
    return Trajectory(
        spec=spec,
        instruction=f"task of {spec.group_id}",
        observations={"image": np.full((length, 2, 3, 3), spec.sample_id, np.uint8)},
        decisions={
            "token_ids": np.full((length, 4), spec.group_id, np.int32),
            "logprobs": np.full((length, 4), -0.5, np.float32),
        },
        num_steps=np.full(length, 3, np.int32),
        rewards=np.zeros(length, np.float32),
        policy_versions=np.arange(length, dtype=np.int32),
        success=success,
        truncated=not success,
    )


def play_iterations(
    *, target: int, max_groups: int, lookahead: int, group_size: int, verdicts: list[bool], order: int, iterations: int
) -> list[tuple[list[int], list[int], list[int]]]:
    """Finish episodes in a random order; per iteration (kept ids, consumed ids, open ids afterwards)."""
    shuffle = random.Random(order)
    sampling = DynamicSampling(groups_per_iteration=target, max_groups=max_groups, lookahead=lookahead)
    unplayed: list[EpisodeSpec] = []
    launched = 0
    history = []
    for _ in range(iterations):
        sampling.consume()
        while not sampling.complete:
            while sampling.wants_prompt and (not unplayed or shuffle.random() < 0.8):
                unplayed += sampling.launch(make_spec(launched, sample) for sample in range(group_size)).specs
                launched += 1
            spec = unplayed.pop(shuffle.randrange(len(unplayed)))
            group = sampling.add(make_trajectory(spec))
            if group is not None:
                sampling.judge(group, keep=verdicts[group.group_id % len(verdicts)])
        kept, consumed = sampling.outcome
        sampling.begin_next()
        still_open = [group.specs[0].group_id for group in sampling.open_groups]
        history.append(([g.group_id for g in kept], [g.group_id for g in consumed], still_open))
    return history


@given(
    target=st.integers(1, 4),
    extra=st.integers(0, 6),
    eager=st.booleans(),
    group_size=st.integers(2, 3),
    verdicts=st.lists(st.booleans(), min_size=1, max_size=7),
    order=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_iterations_consume_all_groups_in_order_and_keep_those_with_signal(
    target: int, extra: int, eager: bool, group_size: int, verdicts: list[bool], order: int
) -> None:
    history = play_iterations(
        target=target,
        max_groups=target + extra,
        lookahead=target if eager else 0,
        group_size=group_size,
        verdicts=verdicts,
        order=order,
        iterations=4,
    )
    consumed = [group_id for _, ids, _ in history for group_id in ids]
    assert consumed == list(range(len(consumed)))
    for kept, ids, still_open in history:
        assert kept == [group_id for group_id in ids if verdicts[group_id % len(verdicts)]]
        assert len(kept) == target or len(ids) == target + extra
        assert len(kept) <= target
        # rejected ones among the open have been judged and only wait for their turn
        hopeful = [group_id for group_id in still_open if verdicts[group_id % len(verdicts)]]
        assert len(hopeful) <= 2 * target
        if not eager:
            assert still_open == []


@given(verdicts=st.lists(st.booleans(), min_size=1, max_size=7), orders=st.tuples(st.integers(), st.integers()))
@settings(deadline=None, max_examples=50)
def test_without_lookahead_the_groups_of_an_iteration_do_not_depend_on_timing(
    verdicts: list[bool], orders: tuple[int, int]
) -> None:
    one, other = (
        play_iterations(target=3, max_groups=9, lookahead=0, group_size=2, verdicts=verdicts, order=order, iterations=4)
        for order in orders
    )
    assert one == other


def test_a_prompt_must_be_one_new_group_of_distinct_samples() -> None:
    sampling = DynamicSampling(groups_per_iteration=1, max_groups=4, lookahead=1)
    sampling.launch([make_spec(3, 0), make_spec(3, 1)])
    with pytest.raises(ValueError, match="launched twice"):
        sampling.launch([make_spec(3, 0)])
    with pytest.raises(ValueError, match="distinct samples of one group"):
        sampling.launch([make_spec(4, 0), make_spec(4, 0)])
    with pytest.raises(ValueError, match="distinct samples of one group"):
        sampling.launch([make_spec(4, 0), make_spec(5, 1)])


def test_pending_groups_survive_being_packed_into_arrays(tmp_path: object) -> None:
    sampling = DynamicSampling(groups_per_iteration=2, max_groups=9, lookahead=2)
    for group_id in range(4):
        sampling.launch(make_spec(group_id, sample, init_state_id=group_id) for sample in range(2))
    for group_id, samples in ((0, (0, 1)), (1, (1,)), (2, (0, 1))):
        for sample in samples:
            spec = make_spec(group_id, sample, init_state_id=group_id)
            group = sampling.add(make_trajectory(spec, success=sample == 0, length=1 + group_id + sample))
            if group is not None:
                sampling.judge(group, keep=group_id == 2)
    path = f"{tmp_path}/state.npz"
    np.savez(path, **pack_groups(sampling.pending()))
    with np.load(path, allow_pickle=False) as stored:
        restored = unpack_groups(stored)
    assert len(restored) == 4
    for got, want in zip(restored, sampling.pending(), strict=True):
        assert (got.specs, got.keep, list(got.trajectories)) == (want.specs, want.keep, list(want.trajectories))
        for sample, trajectory in want.trajectories.items():
            for name in (field.name for field in dataclasses.fields(Trajectory)):
                np.testing.assert_equal(getattr(got.trajectories[sample], name), getattr(trajectory, name))


def test_nothing_pending_packs_into_nothing() -> None:
    assert unpack_groups(pack_groups([])) == []
