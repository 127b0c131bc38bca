"""Demonstrations per second, beside stock LIBERO that plays the same actions and draws while it plays.

The physics: a demonstration of 40 steps costs stock LIBERO 50 control steps (10 of them to settle) and 100 pictures, two
cameras after each. Here an expert plays it without pictures, and what succeeds is played once more and drawn: twice the control
steps, and only the pictures that are kept. Both sides use two processes; ours also asks the expert, and encodes the pictures.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest
from pairing import Rates, Side, compare
from stock import IMAGE_SIZE, NUM_STOCK_ENVS, make_stock_env

from vla_envs.libero.suites import benchmark_suite, initial_states, quiet
from vla_envs.vector.settled import SETTLING_ACTION
from vla_train.demonstrations.attempts import Attempts
from vla_train.demonstrations.config import CollectConfig
from vla_train.demonstrations.player import Played, Player
from vla_train.demonstrations.players import ProcessPlayers

SUITE, TASK_ID = "libero_90", 33
NUM_DEMONSTRATIONS = 8
SETTLE_STEPS = 10
ROUNDS = 3


def config_of(**options: Any) -> CollectConfig:
    """Demonstrations of closing the microwave, whose recorded actions are those that were played."""
    defaults = {"suite": SUITE, "task_ids": (TASK_ID,), "image_size": IMAGE_SIZE, "initial_states": "all", "noise": 0.0}
    return CollectConfig(**{**defaults, "episodes_per_task": NUM_DEMONSTRATIONS, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def played() -> Iterator[list[Played]]:
    """The demonstrations that stock LIBERO plays."""
    config = config_of(image_size=16, detail="fast")
    with closing(Player(config)) as player:
        attempts: Attempts[Played] = Attempts({TASK_ID: np.arange(50)}, config, done={})
        made = [attempts.begin() for _ in range(NUM_DEMONSTRATIONS)]
        yield [player.play(attempt) for attempt in made if attempt is not None]


@pytest.fixture(scope="module")
def stock_envs_of_task() -> Iterator[Any]:
    """Stock LIBERO's vector env, which draws two cameras after every control step."""
    with quiet():
        from libero.libero.envs import SubprocVectorEnv

        bddl_file = benchmark_suite(SUITE).get_task_bddl_file_path(TASK_ID)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)  # a copy of this process would inherit its OpenGL
    try:
        envs = SubprocVectorEnv([partial(make_stock_env, bddl_file, drawing=True)] * NUM_STOCK_ENVS)
    finally:
        multiprocessing.set_start_method(method, force=True)
    envs.reset()
    yield envs
    envs.close()


def play_stock(envs: Any, demonstrations: list[Played], states: np.ndarray) -> int:
    """Play each demonstration once, in both envs at a time; returns how many were played."""
    for one in demonstrations[::NUM_STOCK_ENVS]:
        assert one.demonstration is not None
        envs.set_init_state([states[one.demonstration.origin.init_state_id]] * NUM_STOCK_ENVS)
        for action in [*[SETTLING_ACTION] * SETTLE_STEPS, *one.demonstration.actions]:
            envs.step(np.tile(action, (NUM_STOCK_ENVS, 1)))
    return len(demonstrations)


def collect_here(players: ProcessPlayers, config: CollectConfig) -> int:
    """Play and draw as many demonstrations."""
    attempts: Attempts[Played] = Attempts({TASK_ID: np.arange(50)}, config, done={})
    (task,) = attempts.tasks
    while not task.complete:
        while players.is_free and (following := attempts.begin()):
            players.begin(following)
        for made, result in players.finished():
            list(attempts.finish(made, result, succeeded=result.succeeded))
    return task.successes


def compare_collecting(benchmark: Any, claim: str, config: CollectConfig, played: list[Played], envs: Any) -> Rates:
    states = initial_states(SUITE, TASK_ID)
    with closing(ProcessPlayers(config, NUM_STOCK_ENVS)) as players:
        ours = Side(work=lambda: collect_here(players, config))
        stock = Side(work=lambda: play_stock(envs, played, states))
        return compare(benchmark, claim, "demonstrations/s", ours=ours, stock=stock, rounds=ROUNDS)


def test_what_a_small_policy_learns_from(benchmark: Any, played: list[Played], stock_envs_of_task: Any) -> None:
    """One camera of 84 pixels, simplified meshes."""
    config = config_of(image_size=84, detail="fast")
    rates = compare_collecting(benchmark, "demonstrations for a small policy", config, played, stock_envs_of_task)
    assert rates.ratio >= 5.0


def test_two_cameras_at_full_detail(benchmark: Any, played: list[Played], stock_envs_of_task: Any) -> None:
    """The pictures that stock LIBERO draws."""
    config = config_of(wrist_camera=True)
    rates = compare_collecting(benchmark, "demonstrations with both cameras, full detail", config, played, stock_envs_of_task)
    assert rates.ratio >= 1.0
