"""Whose run a folder holds: the same one where only the spelling of a folder differs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vla_train.config import TrainConfig
from vla_train.config_json import config_to_json
from vla_train.loop import train
from vla_train.run.identity import absolute_place, require_same_run, start_of


def with_checkpoint(config: TrainConfig, checkpoint: str) -> TrainConfig:
    return replace(config, policy=replace(config.policy, checkpoint=checkpoint))


def test_another_spelling_of_a_checkpoint_is_the_same_run(
    small_run: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = tmp_path / "start" / "checkpoints" / "step_000001" / "policy"
    policy.mkdir(parents=True)
    config = small_run()
    config.output.mkdir()
    held = with_checkpoint(config, "start/checkpoints/step_000001/policy")
    (config.output / "config.json").write_text(json.dumps(config_to_json(held)))
    (config.output / "checkpoints" / "step_000001").mkdir(parents=True)
    asked = start_of(with_checkpoint(config, str(tmp_path / "start")))
    assert asked.policy.checkpoint == held.policy.checkpoint
    require_same_run(asked)
    require_same_run(with_checkpoint(config, str(policy)))
    with pytest.raises(ValueError, match=r"policy\.checkpoint"):
        require_same_run(with_checkpoint(config, str(policy.parent)))


@pytest.mark.parametrize(("saved", "from_step"), [(True, 1), (False, 3)])
def test_only_a_run_with_a_checkpoint_keeps_its_start_while_that_is_trained_further(
    saved: bool, from_step: int, small_run: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    start, config = tmp_path / "start", small_run()
    train(replace(small_run(iterations=1), output=start))
    config.output.mkdir()
    config = with_checkpoint(config, str(start))
    (config.output / "config.json").write_text(json.dumps(config_to_json(start_of(config))))
    if saved:
        (config.output / "checkpoints" / "step_000001").mkdir(parents=True)
    train(replace(small_run(iterations=3), output=start))
    assert start_of(config).policy.checkpoint == str(start / "checkpoints" / f"step_{from_step:06d}" / "policy")


@pytest.mark.parametrize("name", [None, "demo", "openvla/openvla-7b"])
def test_what_is_no_folder_keeps_its_name(name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert absolute_place(name) == name
