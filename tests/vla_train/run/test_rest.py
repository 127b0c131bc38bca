"""A policy that holds memory only for deciding is told when no decision will be asked for: before each update."""

from pathlib import Path

import pytest
from small_runs import save_small_checkpoint, small_config

from vla_train.loop import train
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy


def test_a_policy_rests_between_its_decisions_and_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def noted(name: str):
        original = getattr(SimpleVLAOFTPolicy, name, None)

        def call(self: SimpleVLAOFTPolicy, *arguments, **options):
            if calls[-1:] != [name]:
                calls.append(name)
            return original(self, *arguments, **options) if original else None

        return call

    for name in ("act", "rest", "evaluate"):
        monkeypatch.setattr(SimpleVLAOFTPolicy, name, noted(name), raising=False)
    changes = {"rollout": {"min_success_rate": 0.0, "max_success_rate": 1.0}}
    train(small_config(save_small_checkpoint(tmp_path / "checkpoint"), tmp_path / "run", iterations=2, **changes))
    assert calls == ["act", "rest", "evaluate"] * 2
