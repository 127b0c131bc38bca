"""The policy that comes along, on real LIBERO: it succeeds as often as its page says, and GRPO improves it."""

import dataclasses
from pathlib import Path

import pytest

from vla_train.config import EvaluateConfig
from vla_train.evaluation.of_checkpoint import CheckpointEvaluation
from vla_train.evaluation.record import summaries
from vla_train.loop import train
from vla_train.policy.checkpoint_name import checkpoint_folder
from vla_train.recipes import RECIPES
from vla_train.run.tracking import read_records

STATED_RATES = {0.0: 0.44, 1.0: 0.33}
"""Success on held-out initial states, by temperature; see `vla_train/demo/README.md`."""
MAX_BYTES = 12e6

pytestmark = pytest.mark.slow


def test_the_demo_is_small() -> None:
    folder = checkpoint_folder("demo")
    assert folder is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES


def test_the_demo_succeeds_as_often_as_its_page_says(tmp_path: Path) -> None:
    recipe = RECIPES["demo"]()
    results = CheckpointEvaluation(
        EvaluateConfig(
            checkpoint="demo",
            output=tmp_path,
            display="none",
            train_fraction=recipe.train_fraction,
            env=recipe.env,
            policy=dataclasses.replace(recipe.policy, checkpoint=None),
            eval=dataclasses.replace(recipe.eval, videos=0),
        )
    ).play()
    assert [result.temperature for result in results] == list(STATED_RATES)
    for result in results:
        low, high = result.interval
        assert low <= STATED_RATES[result.temperature] <= high


def test_grpo_improves_the_demo(tmp_path: Path) -> None:
    """In a few small iterations. That the wrong sign does not is a test of `test_learning.py`."""
    recipe, iterations = RECIPES["demo"](), 6
    train(
        dataclasses.replace(
            recipe,
            output=tmp_path,
            iterations=iterations,
            checkpoint_every=iterations,
            display="none",
            trackers=(),
            rollout=dataclasses.replace(recipe.rollout, group_size=8, deterministic=True),
            optim=dataclasses.replace(recipe.optim, warmup_steps=0, schedule="constant"),
            eval=dataclasses.replace(recipe.eval, every=iterations, before_training=False, temperatures=(1.0,), videos=0),
        )
    )
    (record,) = read_records(tmp_path, "eval")
    assert summaries(record)[1.0]["success_rate"] >= STATED_RATES[1.0] + 0.1
