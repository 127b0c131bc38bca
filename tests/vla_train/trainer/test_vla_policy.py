"""The trainer with the real model: ways of computing the same update, adapters, and what is exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import run_ranks
from small_policy import TEMPERATURE, make_groups, save_checkpoint
from small_runs import ACTION_DIM, CHUNK_SIZE, save_small_checkpoint
from torch import Tensor

from vla_train.config import AlgoConfig, OptimConfig, PolicyConfig
from vla_train.policy.simplevla_oft import checkpoint_saving as policy_checkpoint
from vla_train.policy.simplevla_oft.build import build_policy
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.trainer import saving
from vla_train.trainer.checkpoint import load_checkpoint
from vla_train.trainer.checkpoint_folder import latest_checkpoint, list_checkpoints
from vla_train.trainer.group_trainer import GroupTrainer, UpdateMetrics
from vla_train.trainer.manifest import CheckpointError
from vla_train.trainer.parallel import ONE_RANK, Ranks
from vla_train.types import EnvDescription, Group, Observation

IMAGE_SHAPE = (32, 32, 3)
OPTIM = OptimConfig(learning_rate=1e-3, minibatch_trajectories=6, microbatch_rows=8)
ROUNDING = 1e-4
"""A tenth of an AdamW step: it makes steps of rounding errors where the gradient itself is 0 (a key's bias, say)."""

pytestmark = pytest.mark.usefixtures("one_thread")


def load(checkpoint: Path, **options: Any) -> SimpleVLAOFTPolicy:
    bound = np.ones(ACTION_DIM, np.float32)
    config = PolicyConfig(
        **{"checkpoint": str(checkpoint), "chunk_size": CHUNK_SIZE, "device": "cpu", "dtype": "float32", **options}
    )
    return build_policy(config, EnvDescription(observations={}, action_low=-bound, action_high=bound), seed=0)


def make_trainer(policy: SimpleVLAOFTPolicy, optim: OptimConfig = OPTIM, ranks: Ranks = ONE_RANK) -> GroupTrainer:
    return GroupTrainer(optim, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0, ranks=ranks)


def make_vla_groups(policy: SimpleVLAOFTPolicy) -> list[Group]:
    return make_groups(policy, image_shape=IMAGE_SHAPE)


def weights_of(policy: SimpleVLAOFTPolicy) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in policy.trainable_module().named_parameters()}


def updated(checkpoint: Path, optim: OptimConfig = OPTIM, **options: Any) -> tuple[dict[str, Tensor], UpdateMetrics]:
    policy = load(checkpoint, **options)
    metrics = make_trainer(policy, optim).update(make_vla_groups(policy), iteration=0)
    return weights_of(policy), metrics


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], *, atol: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"activation_checkpointing": "on"}, {"jpeg": "on"}], ids=str)
def test_the_first_mini_batch_starts_at_the_log_probs_that_sampling_kept(
    options: dict[str, Any], small_checkpoint: Path
) -> None:
    _, metrics = updated(small_checkpoint, replace(OPTIM, minibatch_trajectories=100), **options)
    assert metrics.loss_metrics["sampling_gap"] < 1e-6
    assert metrics.loss_metrics["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics.loss_metrics["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics.grad_norm > 0


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=str)
def test_recomputed_activations_give_the_same_update(options: dict[str, Any], small_checkpoint: Path) -> None:
    expected, metrics = updated(small_checkpoint, **options)
    weights, other = updated(small_checkpoint, activation_checkpointing="on", **options)
    assert_same(weights, expected, atol=0)
    assert replace(other, duration_s=0) == replace(metrics, duration_s=0)
    assert metrics.updates == 2


def test_prompts_of_different_length_may_share_a_micro_batch(small_checkpoint: Path) -> None:
    expected, metrics = updated(small_checkpoint)
    for rows in (1, 1000):
        weights, other = updated(small_checkpoint, replace(OPTIM, microbatch_rows=rows))
        assert_same(weights, expected, atol=ROUNDING)
        assert other.loss == pytest.approx(metrics.loss, abs=1e-5)


def test_with_adapters_nothing_else_moves_and_the_export_is_the_policy_that_was_trained(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    policy = load(small_checkpoint, lora_rank=2)
    before = weights_of(policy)
    trainer = make_trainer(policy, replace(OPTIM, learning_rate=1e-2))
    groups = make_vla_groups(policy)
    trainer.update(groups, iteration=0)
    after = weights_of(policy)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    assert any("lora_A" in name for name in moved)
    assert any("lora_B" in name for name in moved)

    trainer.export(tmp_path / "exported")
    assert sorted(path.name for path in (tmp_path / "exported").glob("*.safetensors")) == ["adapter_model.safetensors"]
    exported = load(tmp_path / "exported")
    assert not any(".lora_" in name for name in weights_of(exported))
    trajectory = groups[0].trajectories[0]
    observation = Observation(
        arrays={"image": trajectory.observations["image"]}, instructions=(trajectory.instruction,) * len(trajectory)
    )
    tokens = torch.from_numpy(trajectory.decisions["token_ids"])
    logprobs = [p.evaluate(observation, {"token_ids": tokens}, temperature=1.0)["logprobs"] for p in (policy, exported)]
    torch.testing.assert_close(logprobs[1], logprobs[0], rtol=0, atol=1e-5)
    assert not np.allclose(
        logprobs[0].detach(),
        load(small_checkpoint).evaluate(observation, {"token_ids": tokens}, temperature=1.0)["logprobs"].detach(),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_and_their_optimizer_resume_where_they_were(dtype: str, small_checkpoint: Path, tmp_path: Path) -> None:
    policy = load(small_checkpoint, lora_rank=2, dtype=dtype)
    groups = make_vla_groups(policy)
    trainer = make_trainer(policy)
    trainer.update(groups, iteration=0)
    path = save_checkpoint(tmp_path, iteration=1, trainer=trainer, rollout_state={}, extra={})
    expected = replace(trainer.update(groups, iteration=1), duration_s=0)

    for start in (small_checkpoint, path / "policy"):
        again = load(start, lora_rank=2, dtype=dtype)
        resumed = make_trainer(again)
        load_checkpoint(path, trainer=resumed)
        assert replace(resumed.update(groups, iteration=1), duration_s=0) == expected
        assert_same(weights_of(again), weights_of(policy), atol=0)


@pytest.mark.parametrize("base_dtype", ["fp8", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_on_a_quantised_base_computes_with_the_adapters_as_they_are_after_an_update(
    dtype: str, base_dtype: str, tmp_path: Path
) -> None:
    checkpoint = save_small_checkpoint(tmp_path / "checkpoint", width=64)
    options: dict[str, Any] = {"lora_rank": 2, "base_dtype": base_dtype, "dtype": dtype}
    policy, other = load(checkpoint, **options), load(checkpoint, **options)
    groups = make_vla_groups(policy)
    trainer = make_trainer(policy, replace(OPTIM, learning_rate=1e-2))
    trainer.update(groups, iteration=0)
    trainer.push_weights(other)
    trainer.export(tmp_path / "saved")
    observation = Observation(arrays={"image": np.zeros((2, *IMAGE_SHAPE), np.uint8)}, instructions=("go", "stay"))
    played = [
        p.act(observation, uniforms=None, temperature=1.0).decision["logprobs"]
        for p in (policy, other, load(tmp_path / "saved", **options), load(tmp_path / "saved", **options | {"lora_rank": 0}))
    ]
    for logprobs in played[1:]:
        np.testing.assert_array_equal(logprobs, played[0])


def train_on(ranks: Ranks, checkpoint: Path, options: dict[str, Any], sharding: str) -> tuple[UpdateMetrics, dict[str, Any]]:
    """Metrics and pushed weights; the first rank has played all groups but one."""
    policy, sampler = load(checkpoint, **options), load(checkpoint, **options)
    trainer = make_trainer(policy, replace(OPTIM, sharding=sharding), ranks)  # type: ignore[arg-type]
    groups = make_vla_groups(sampler)
    if ranks.size > 1:
        groups = groups[:-1] if ranks.rank == 0 else groups[-1:]
    metrics = replace(trainer.update(groups, iteration=0), duration_s=0)
    trainer.push_weights(sampler)
    return metrics, {name: value.numpy() for name, value in weights_of(sampler).items()}


@pytest.mark.parametrize(
    ("options", "sharding"),
    [
        ({"activation_checkpointing": "on"}, "auto"),
        ({"lora_rank": 2}, "auto"),
        ({"lora_rank": 2, "activation_checkpointing": "on"}, "shard"),
        ({"lora_rank": 2, "base_dtype": "fp8"}, "shard"),
    ],
    ids=str,
)
def test_two_ranks_give_the_update_of_one_process(options: dict[str, Any], sharding: str, small_checkpoint: Path) -> None:
    expected, expected_weights = train_on(ONE_RANK, small_checkpoint, options, sharding)
    for metrics, weights in run_ranks(train_on, 2, small_checkpoint, options, sharding):
        for name in UpdateMetrics.__dataclass_fields__:
            assert getattr(metrics, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-5), name
        for name, value in expected_weights.items():
            np.testing.assert_allclose(weights[name], value, rtol=0, atol=ROUNDING, err_msg=name)


def save_both_ways(ranks: Ranks, checkpoint: Path, folder: Path, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Save a policy that is spread over the ranks from copies, and while training stands still; returns its trained weights."""
    policy, sampler = load(checkpoint, **options), load(checkpoint, **options)
    trainer = make_trainer(policy, replace(OPTIM, sharding="shard"), ranks)
    trainer.update(make_vla_groups(sampler)[: 2 * (1 - ranks.rank)], iteration=0)
    save_checkpoint(folder / "copied", iteration=1, trainer=trainer)
    saving.free_host_bytes = lambda: 0
    save_checkpoint(folder / "stood_still", iteration=1, trainer=trainer)
    return {name: value.numpy() for name, value in trainer._gathered_weights().items()}


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=str)
def test_what_ranks_save_from_copies_is_what_they_hold_to_the_byte(
    options: dict[str, Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    gathered, _ = run_ranks(save_both_ways, 2, small_checkpoint, tmp_path, options)
    copied, stood_still = (latest_checkpoint(tmp_path / way) for way in ("copied", "stood_still"))
    assert copied is not None
    assert stood_still is not None
    assert (copied / "manifest.json").read_text() == (stood_still / "manifest.json").read_text()
    assert {path.name[:12] for path in copied.glob("trainer-*")} == {"trainer-0000", "trainer-0001"}
    exported = weights_of(load(copied / "policy", **options))
    resumed = load(small_checkpoint, **options)
    load_checkpoint(copied, trainer=make_trainer(resumed))
    for name, value in gathered.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)
        np.testing.assert_array_equal(weights_of(resumed)[name], value, err_msg=name)


def save_on_a_full_disk(ranks: Ranks, checkpoint: Path, run: Path, options: dict[str, Any]) -> list[str]:
    """Save, then save again where the first rank can write only the beginning of the policy; returns what was said and left."""
    policy_checkpoint._SHARD_BYTES = 100_000  # several files, so that ranks exchange weights after the one that fails
    trainer = make_trainer(load(checkpoint, **options), replace(OPTIM, sharding="shard"), ranks)
    arguments: dict[str, Any] = {"trainer": trainer, "rollout_state": {}, "extra": {}}
    save_checkpoint(run, iteration=1, **arguments)
    written = policy_checkpoint.save_file

    def disk_full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    policy_checkpoint.save_file = disk_full
    try:
        save_checkpoint(run, iteration=2, **arguments)
    except CheckpointError as error:
        said = str(error)
    policy_checkpoint.save_file = written
    save_checkpoint(run, iteration=3, **arguments)
    return [said, *(path.name for path in list_checkpoints(run))]


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=str)
def test_a_disk_that_fills_up_while_ranks_gather_the_policy_stops_none_of_them(
    options: dict[str, Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    for said, *left in run_ranks(save_on_a_full_disk, 2, small_checkpoint, tmp_path, options):
        assert "could not be written: [Errno 28] No space left on device" in said
        assert left == ["step_000001", "step_000003"]


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=str)
def test_on_a_gpu_optimizer_state_in_host_memory_gives_the_same_numbers(
    options: dict[str, Any], small_checkpoint: Path
) -> None:
    expected, _ = updated(small_checkpoint, device="cuda", **options)
    weights, _ = updated(small_checkpoint, replace(OPTIM, cpu_offload=True), device="cuda", **options)
    assert_same(weights, expected, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{}, {"lora_rank": 4}, {"lora_rank": 4, "base_dtype": "fp8", "lora_layers": "language"}], ids=str
)
@pytest.mark.parametrize("checkpointing", ["auto", "on"])
def test_on_a_gpu_compiled_updates_replayed_as_graphs_start_at_the_log_probs_of_sampling_and_learn_the_same(
    options: dict[str, Any], checkpointing: str, small_checkpoint: Path
) -> None:
    options = {"device": "cuda", "dtype": "bfloat16", "activation_checkpointing": checkpointing, **options}
    optim = replace(OPTIM, minibatch_trajectories=100, microbatch_rows=2)
    plain, compiled = (load(small_checkpoint, compile=compile, **options) for compile in (False, True))
    norms = []
    for policy in (plain, compiled):
        trainer, groups = make_trainer(policy, optim), make_vla_groups(policy)
        for iteration in range(2):  # the second one replays
            metrics = trainer.update(groups, iteration=iteration)
            norms.append(metrics.grad_norm)
            if iteration == 0:
                assert metrics.loss_metrics["sampling_gap"] < 1e-3
    assert norms[2] == pytest.approx(norms[0], rel=0.1)
    assert norms[3] == pytest.approx(norms[1], rel=0.1)
