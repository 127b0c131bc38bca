"""The cluster on paper keeps its books: the tables of docs/cluster_plan.md come from it."""

from collections import Counter

import pytest

from benchmarks.pipeline.cluster_spec import ClusterSpec, Network, Replicas, Simulators, Training, paper_lengths
from benchmarks.pipeline.virtual_cluster import VirtualRank, play
from vla_train.config import RolloutConfig


@pytest.mark.parametrize(("call_s", "chunks_per_s"), [(0.5, 16 / 1.5), (1.0, 8.0), (2.0, 4.0)])
def test_two_workers_and_a_policy_reach_exactly_what_can_be_computed_by_hand(call_s: float, chunks_per_s: float) -> None:
    """8 slots each, a second a chunk, a call for each worker: 16 chunks in max(1 + call, 2 calls) seconds."""
    spec = ClusterSpec(
        rollout=RolloutConfig(groups_per_iteration=4, group_size=4),
        simulators=Simulators(nodes=2, workers_per_node=1, worker_chunk_s=1.0, length=lambda spec: 10),
        replicas=Replicas(call_s=call_s, max_rows=8),
    )
    ranks = [VirtualRank(spec)]
    play(ranks, decisions=480)
    played = play(ranks, decisions=1600)
    assert (played.chunks_per_s, played.decisions, played.rows_per_call) == (pytest.approx(chunks_per_s), 1600, 8)
    assert played.policy == pytest.approx(2 * call_s * chunks_per_s / 16)
    assert played.simulators == pytest.approx(chunks_per_s / 16)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_two_ranks_play_each_episode_of_each_group_once(max_staleness: int) -> None:
    spec = ClusterSpec(
        rollout=RolloutConfig(groups_per_iteration=3, group_size=4, max_staleness=max_staleness),
        simulators=Simulators(nodes=3, envs_per_worker=5, slot_chunk_s=0.05, slot_reset_s=0.02, sigma=0.5, node_sigma=0.3),
        replicas=Replicas(count=2, call_s=0.01, row_s=0.01, max_rows=6),
        network=Network(latency_s=0.001, bytes_per_s=1e8, observation_bytes=200_000),
        training=Training(row_s=0.001, push_s=0.5, signal=0.7),
    )
    ranks = [VirtualRank(spec, rank=rank, size=2) for rank in range(2)]
    played = play(ranks, decisions=6000)
    for rank in range(2):
        own = sorted(group.group_id for group in played.groups if group.group_id % 2 == rank)
        assert own == list(range(rank, rank + 2 * len(own), 2)), "a group was left out, or consumed twice"
    trajectories = [trajectory for group in played.groups for trajectory in group.trajectories]
    assert all(len(group.trajectories) == 4 for group in played.groups)
    assert all(len(trajectory) == paper_lengths(trajectory.spec) for trajectory in trajectories)
    ended = Counter(spec for rank in ranks for spec in rank.site.episodes)
    assert set(ended.values()) == {1}
    assert ended.keys() >= {trajectory.spec for trajectory in trajectories}
    assert all(0 < share < 1 for share in (played.policy, played.simulators))
