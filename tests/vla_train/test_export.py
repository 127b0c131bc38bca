"""`python -m vla_train export`: what a run learned, as a whole checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_runs import run_command

from vla_train.cli import main
from vla_train.config import TrainConfig
from vla_train.loop import train
from vla_train.policy.simplevla_oft import SimpleVLAOFT, checkpoint_saving


@pytest.fixture
def run(small_run: Callable[..., TrainConfig]) -> TrainConfig:
    config = small_run(iterations=1, policy={"lora_rank": 2}, optim={"learning_rate": 1e-2})
    train(config)
    return config


def test_a_runs_adapters_are_exported_merged_into_the_weights_of_their_base(
    run: TrainConfig, small_checkpoint: Path, tmp_path: Path
) -> None:
    before = (small_checkpoint / "model.safetensors").read_bytes()
    output = tmp_path / "merged"
    result = run_command("export", "--checkpoint", str(run.output), "--output", str(output), "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"exported: {output}\n"
    assert "reading" in result.stderr
    assert str(small_checkpoint) in result.stderr
    policy = run.output / "checkpoints" / "step_000001" / "policy"
    assert not (policy / "model.safetensors").exists()
    merged, base = load_file(output / "model.safetensors"), load_file(small_checkpoint / "model.safetensors")
    factors = load_file(policy / "adapter_model.safetensors")
    scaling = json.loads((policy / "adapter_config.json").read_text())["lora_alpha"] / 2
    assert merged.keys() == base.keys()
    for key, weight in base.items():
        name = f"base_model.model.{key.removesuffix('.weight')}.lora_"
        update = scaling * factors[f"{name}B.weight"] @ factors[f"{name}A.weight"] if f"{name}A.weight" in factors else 0
        torch.testing.assert_close(merged[key], weight + update, atol=1e-6, rtol=0)
    assert (small_checkpoint / "model.safetensors").read_bytes() == before
    for name in ("config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"):
        assert (output / name).read_bytes() == (policy / name).read_bytes()


def test_weights_are_bfloat16_unless_asked_otherwise_and_a_whole_checkpoint_stays_one(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    main(["export", "--checkpoint", str(small_checkpoint), "--output", str(tmp_path / "copy")])
    copy = load_file(tmp_path / "copy" / "model.safetensors")
    assert all(
        torch.equal(copy[key], value.bfloat16()) for key, value in load_file(small_checkpoint / "model.safetensors").items()
    )
    SimpleVLAOFT.from_pretrained(tmp_path / "copy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "demo", "--output", "full"], "full exists and is no empty folder: choose another --output"),
        (["--checkpoint", "demo", "--output", "full/file"], "file exists and is no empty folder"),
        (["--checkpoint", "nowhere", "--output", "new"], "no checkpoint at nowhere"),
        (["--checkpoint", "full", "--output", "new"], "config.json is missing"),
        (["--checkpoint", "demo", "--output", "new", "--dtype", "int8"], "int8"),
        (["--checkpoint", "demo"], "--output"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").touch()
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_a_checkpoint_with_a_damaged_tokenizer_is_not_exported(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(small_checkpoint, tmp_path / "damaged")
    tokenizer = damaged / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes()[:50])
    with pytest.raises(SystemExit):
        main(["export", "--checkpoint", str(damaged), "--output", str(tmp_path / "new")])
    assert f"{damaged}: tokenizer.json is not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("no space")])
def test_on_a_full_disk_nothing_is_left(
    error: Exception,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint_saving, "save_file", full)
    with pytest.raises(SystemExit) as stop:
        main(["export", "--checkpoint", str(small_checkpoint), "--output", str(tmp_path / "new")])
    assert stop.value.code == 1
    assert "new could not be written: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
