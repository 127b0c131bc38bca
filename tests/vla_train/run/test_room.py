"""Room for checkpoints is asked for before a large model is loaded, and from its files alone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vla_train.run.run
from vla_train.config import PolicyConfig, TrainConfig
from vla_train.loop import set_up
from vla_train.run.room import least_checkpoint_bytes
from vla_train.trainer import checkpoint as checkpoint_module


def test_the_estimate_is_little_less_than_a_checkpoint_of_the_loaded_policy_takes(
    small_run: Callable[..., TrainConfig], small_checkpoint: Path
) -> None:
    run = set_up(small_run())
    run.close()
    exact = run.trainer.optimizer.num_bytes + run.trainer.policy_bytes
    assert 0.9 * exact < least_checkpoint_bytes(run.config.policy) <= exact
    adapters = PolicyConfig(checkpoint=str(small_checkpoint), lora_rank=4, dtype="bfloat16")
    assert 0.9 * exact / 8 < least_checkpoint_bytes(adapters) <= exact / 8


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
    with pytest.raises(ValueError, match=r"has 4 MB free, checkpoints of this run take up to 7.6 MB \(4 of 1.9 MB\)"):
        set_up(small_run())
    assert not small_run().output.exists()
