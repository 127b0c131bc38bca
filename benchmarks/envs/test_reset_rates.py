"""Slots put into new initial states per second, beside stock LIBERO's `reset` and `set_init_state`.

The physics: stock LIBERO parses and compiles the scene and uploads its textures at every reset. Here a reset copies a state,
plays settling steps and draws one picture; at full detail that picture is nearly all of its cost. Slots with the same initial
state, as in a GRPO group, are settled and drawn once, and so are initial states that come again.
"""

from typing import Any

import numpy as np
import pytest
from pairing import Side, compare
from stock import IMAGE_SIZE, NUM_STOCK_ENVS, SUITE, TASK_ID, reset_stock

from vla_envs.libero.env import LiberoEnv

NUM_ENVS = 8
ROUNDS = 4


def compare_resets(benchmark: Any, stock_envs: Any, claim: str, *, distinct: int, seen: bool = False, **options: Any) -> float:
    """Reset all slots to `distinct` other initial states, `seen` before or not; returns the ratio of slots per second."""
    env = LiberoEnv(NUM_ENVS, suite=SUITE, task_ids=[TASK_ID], image_size=IMAGE_SIZE, **options)
    num_resets = 0
    if seen:
        for first in range(0, distinct * (ROUNDS + 1), NUM_ENVS):
            env.reset(options={"init_state_id": first + np.arange(NUM_ENVS)})

    def reset_here() -> int:
        nonlocal num_resets
        first = distinct * num_resets
        num_resets += 1
        assert first + distinct <= env.num_init_states[TASK_ID]
        env.reset(options={"init_state_id": first + np.arange(NUM_ENVS) % distinct})
        return NUM_ENVS

    def reset_there() -> int:
        reset_stock(stock_envs, NUM_STOCK_ENVS * num_resets)
        return NUM_STOCK_ENVS

    rates = compare(
        benchmark, f"reset, {claim}", "slots/s", ours=Side(work=reset_here), stock=Side(work=reset_there), rounds=ROUNDS
    )
    env.close()
    return rates.ratio


def test_without_cameras(benchmark: Any, stock_envs_without_cameras: Any) -> None:
    ratio = compare_resets(
        benchmark, stock_envs_without_cameras, "no cameras, distinct states", distinct=NUM_ENVS, cameras=(), settle_steps=0
    )
    assert ratio >= 50.0


@pytest.mark.parametrize(("detail", "at_least"), [("full", 15.0), ("fast", 50.0)])
def test_with_a_picture_of_each_slot(benchmark: Any, stock_envs: Any, detail: str, at_least: float) -> None:
    """Ten settling steps included, which stock LIBERO leaves to its users."""
    claim = f"{detail} detail, distinct states, settled"
    assert compare_resets(benchmark, stock_envs, claim, distinct=NUM_ENVS, detail=detail) >= at_least


def test_initial_states_that_come_again(benchmark: Any, stock_envs: Any) -> None:
    """As all do that training plays, from the second time on: a benchmark's task has 50."""
    claim = "full detail, distinct states seen before, settled"
    assert compare_resets(benchmark, stock_envs, claim, distinct=NUM_ENVS, seen=True) >= 50.0


def test_a_grpo_group_at_full_detail(benchmark: Any, stock_envs: Any) -> None:
    """All slots begin in the same new state."""
    claim = "full detail, one state for all slots, settled"
    assert compare_resets(benchmark, stock_envs, claim, distinct=1) >= 50.0
