"""Room for checkpoints is asked for before a large model is loaded, and from its files alone."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import vla_train.run.run
from vla_train.config import PolicyConfig, TrainConfig
from vla_train.loop import set_up
from vla_train.run.room import least_checkpoint_bytes
from vla_train.trainer import checkpoint as checkpoint_module


def test_the_estimate_is_little_less_than_a_checkpoint_of_the_loaded_policy_takes(
    small_run: Callable[..., TrainConfig],
) -> None:
    run = set_up(small_run())
    run.close()
    exact = run.trainer.optimizer.num_bytes + run.trainer.policy_bytes
    assert 0.9 * exact < least_checkpoint_bytes(run.config.policy) <= exact


def _estimated_and_exact(config: TrainConfig) -> tuple[int, int]:
    run = set_up(config)
    run.close()
    files = sum(map(len, run.trainer._module.companion_files.values()))
    return least_checkpoint_bytes(config.policy), run.trainer.optimizer.num_bytes + run.trainer.policy_bytes - files


def test_adapters_are_estimated_as_such_and_merged_ones_as_whole_weights(
    small_run: Callable[..., TrainConfig], small_checkpoint: Path, tmp_path: Path
) -> None:
    adapters: dict[str, Any] = {"lora_rank": 16, "lora_layers": "language", "dtype": "bfloat16"}
    config = small_run(policy=adapters)
    estimated, exact = _estimated_and_exact(config)
    assert estimated == exact
    policy = set_up(config)
    policy.trainer.export(tmp_path / "adapters")
    policy.close()
    kept = replace(config, output=tmp_path / "kept", policy=replace(config.policy, checkpoint=str(tmp_path / "adapters")))
    assert _estimated_and_exact(kept) == (estimated, exact)
    merged = replace(kept, output=tmp_path / "merged", policy=replace(kept.policy, lora_rank=8))
    estimated, exact = _estimated_and_exact(merged)
    whole = 2 * sum(tensor.numel() for tensor in load_file(small_checkpoint / "model.safetensors").values())
    assert 0.9 * exact < estimated <= exact
    assert whole < exact


def test_what_is_not_known_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    for checkpoint in (None, "owner/name", str(tmp_path)):
        assert least_checkpoint_bytes(PolicyConfig(checkpoint=checkpoint)) == 0


def test_too_little_room_is_refused_before_anything_is_loaded(
    small_run: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vla_train.run.run, "make_workers", lambda *_, **__: pytest.fail("workers were started"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda path: usage._replace(free=4_000_000))
    monkeypatch.setattr(checkpoint_module, "_SPARE_BYTES", 0)
    with pytest.raises(ValueError, match=r"has 4 MB free, checkpoints of this run take up to 5.7 MB \(3 of 1.9 MB\)"):
        set_up(small_run())
    with pytest.raises(ValueError, match=r"up to 7.6 MB \(4 of 1.9 MB\)"):  # the best one is kept, too
        set_up(small_run(eval={"every": 1}))
    assert not small_run().output.exists()
