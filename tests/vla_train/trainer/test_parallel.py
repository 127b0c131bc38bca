"""Several ranks: the same loss and the same weights as one process. Ranks are processes on the CPU that talk through gloo."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import run_ranks
from small_policy import CHUNK_SIZE, IMAGE_SHAPE, NUM_TOKENS, TEMPERATURE, SmallPolicy, make_groups, save_checkpoint

from vla_train.config import AlgoConfig, OptimConfig
from vla_train.trainer.checkpoint import load_checkpoint
from vla_train.trainer.checkpoint_folder import latest_checkpoint
from vla_train.trainer.exchange import share_rows
from vla_train.trainer.group_trainer import GroupTrainer, UpdateMetrics
from vla_train.trainer.parallel import Ranks, share_cores
from vla_train.types import Group, TrainBatch

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIM = OptimConfig(learning_rate=1e-2, minibatch_trajectories=5, microbatch_rows=3, epochs=2)
ITERATIONS = 3


def split(groups: list[Group], ranks: Ranks) -> list[Group]:
    """Unevenly: the first rank has all groups but one."""
    if ranks.size == 1:
        return groups
    return groups[:-1] if ranks.rank == 0 else groups[-1:] if ranks.rank == 1 else []


def train(
    ranks: Ranks, optim: OptimConfig, dtype: torch.dtype = torch.float32, run: Path | None = None
) -> tuple[list[UpdateMetrics], dict[str, np.ndarray], bool]:
    """Metrics, pushed weights, and whether they were sharded in training."""
    policy = SmallPolicy(seed=0 if ranks.rank == 0 else 7, dtype=dtype)
    sampler = SmallPolicy(seed=0, dtype=dtype)
    trainer = GroupTrainer(optim, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0, ranks=ranks)
    first = 0
    if run is not None and (path := latest_checkpoint(run)) is not None:
        first = load_checkpoint(path, trainer=trainer).iteration
    trainer.push_weights(sampler)
    metrics = []
    for iteration in range(first, ITERATIONS):
        groups = split(make_groups(sampler, seed=iteration), ranks)
        metrics.append(replace(trainer.update(groups, iteration=iteration), duration_s=0))
        trainer.push_weights(sampler)
        if run is not None and iteration == 0 and ranks.size > 1:
            save_checkpoint(run, iteration=1, trainer=trainer, rollout_state={}, extra={})
    weights = {name: value.detach().float().numpy().copy() for name, value in sampler.module.named_parameters()}
    sharded = any(type(value).__name__ == "DTensor" for value in policy.module.parameters())
    return metrics, weights, sharded


def assert_same(result: Any, expected: Any, *, atol: float) -> None:
    for metrics, reference in zip(result[0], expected[0], strict=True):
        for name in UpdateMetrics.__dataclass_fields__:
            assert getattr(metrics, name) == pytest.approx(getattr(reference, name), rel=1e-3, abs=atol), name
    for name, value in expected[1].items():
        np.testing.assert_allclose(result[1][name], value, atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize("sharding", ["shard", "replicate"])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_loss_and_weights_of_one_process(sharding: str, size: int) -> None:
    optim = replace(OPTIM, sharding=sharding)  # type: ignore[arg-type]
    expected = train(Ranks(), optim)
    for result in run_ranks(train, size, optim):
        assert_same(result, expected, atol=2e-4)
        assert result[2] == (sharding == "shard")


def test_bfloat16_weights_with_their_state_in_host_memory_shard_too() -> None:
    optim = replace(OPTIM, sharding="shard", cpu_offload=True, minibatch_trajectories=100, epochs=1)
    expected = train(Ranks(), optim, torch.bfloat16)
    for result in run_ranks(train, 2, optim, torch.bfloat16):
        assert_same(result, expected, atol=2e-2)


@pytest.mark.parametrize("size", [1, 2])
def test_a_checkpoint_of_two_ranks_resumes_on_one_and_on_two(size: int, tmp_path: Path) -> None:
    optim = replace(OPTIM, sharding="shard")
    uninterrupted = run_ranks(train, 2, optim, torch.float32, tmp_path)[0]
    if size == 1:
        results = [train(Ranks(), optim, torch.float32, tmp_path)]
    else:
        results = run_ranks(train, 2, optim, torch.float32, tmp_path)
    for metrics, weights, _ in results:
        assert len(metrics) == ITERATIONS - 1
        assert_same((metrics, weights), (uninterrupted[0][1:], uninterrupted[1]), atol=2e-4 if size == 1 else 0)


def share(ranks: Ranks, num_rows: int) -> TrainBatch:
    whole = numbered_rows(num_rows)
    owners = np.random.default_rng(num_rows).integers(0, ranks.size, num_rows)
    own = whole.select(np.flatnonzero(owners == ranks.rank))
    return share_rows(own, owners=owners, instructions=list(whole.instructions), ranks=ranks)


def numbered_rows(num_rows: int) -> TrainBatch:
    tokens = np.arange(num_rows * NUM_TOKENS).reshape(num_rows, NUM_TOKENS)
    images = np.broadcast_to(np.arange(num_rows, dtype=np.uint8)[:, None, None, None], (num_rows, *IMAGE_SHAPE))
    return TrainBatch(
        observations={"image": images, "state": -tokens.astype(np.float32)},
        instructions=tuple(f"text {row}" for row in range(num_rows)),
        decisions={"token_ids": tokens.astype(np.int32), "number": np.arange(num_rows)},
        advantages=2 * np.arange(num_rows, dtype=np.float32),
        weights=np.ones((num_rows, CHUNK_SIZE), np.float32),
    )


@pytest.mark.parametrize("num_rows", [1, 2, 7, 12])
def test_every_row_is_trained_on_once_whoever_holds_it(num_rows: int) -> None:
    whole = numbered_rows(num_rows)
    shares = run_ranks(share, 3, num_rows)
    assert len({len(part) for part in shares}) == 1
    counted = [(part, row) for part in shares for row in range(len(part)) if part.weights[row].any()]
    assert [int(part.decisions["number"][row]) for part, row in counted] == list(range(num_rows))
    for part in shares:
        for row, number in enumerate(part.decisions["number"]):
            assert part.instructions[row] == whole.instructions[number]
            assert part.advantages[row] == whole.advantages[number]
            for mapping in ("observations", "decisions"):
                for name, array in getattr(whole, mapping).items():
                    np.testing.assert_array_equal(getattr(part, mapping)[name][row], array[number])


def threads_of(ranks: Ranks, environment: dict[str, str], cores: list[set[int]]) -> list[int]:
    """What a rank computes with, each on its cores."""
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    os.sched_getaffinity = lambda pid: cores[ranks.rank]  # type: ignore[assignment]
    chosen: list[int] = []
    torch.set_num_threads = chosen.append
    share_cores(ranks)
    return chosen


@pytest.mark.parametrize(
    ("environment", "bound", "threads"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, False, [4]),
        ({"LOCAL_WORLD_SIZE": "2"}, True, [8]),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, False, []),
        ({"OMP_NUM_THREADS": "1"}, False, []),
    ],
)
def test_ranks_share_the_cores_that_both_may_use_unless_somebody_said_how_many_threads(
    environment: dict[str, str], bound: bool, threads: list[int]
) -> None:
    cores = [set(range(8)), set(range(8, 16) if bound else range(8))]
    assert run_ranks(threads_of, 2, environment, cores) == [threads] * 2
