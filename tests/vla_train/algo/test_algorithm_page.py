"""The page that explains the algorithm names files, options, metrics and tests that there are."""

import re
from pathlib import Path

import pytest
import torch

from vla_train.algo.losses import LossInputs, clipped
from vla_train.config import AlgoConfig, TrainConfig
from vla_train.trainer.group_trainer import UpdateMetrics

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "algorithm.md").read_text()


def names(pattern: str) -> list[str]:
    found = sorted(set(re.findall(rf"`(?:--)?({pattern})[` ]", PAGE)))
    assert found
    return found


@pytest.mark.parametrize("name", names(r"test_\w+"))
def test_a_test_that_is_named_exists(name: str) -> None:
    assert any(f"def {name}(" in file.read_text() for file in (ROOT / "tests" / "vla_train").rglob("test_*.py"))


@pytest.mark.parametrize("name", names(r"[a-z]+/(?:\w+\.py)?"))
def test_a_file_that_is_named_exists(name: str) -> None:
    assert any((folder / name).exists() for folder in (ROOT, ROOT / "vla_train"))


@pytest.mark.parametrize("name", names(r"(?:rollout|algo|optim|eval)\.[a-z-]+"))
def test_an_option_that_is_named_exists(name: str) -> None:
    section, option = name.split(".")
    assert hasattr(getattr(TrainConfig(), section), option.replace("-", "_"))


@pytest.mark.parametrize("name", names(r"update/\w+"))
def test_a_metric_that_is_named_exists(name: str) -> None:
    ones = torch.ones(1, 1)
    inputs = LossInputs(decision={"logprobs": ones}, advantages=ones[0], weights=ones)
    output = clipped({"logprobs": ones, "entropies": ones}, inputs, AlgoConfig())
    known = {*UpdateMetrics.__dataclass_fields__, *output.sums, *output.first_sums, *output.maxima}
    assert name.removeprefix("update/") in known
