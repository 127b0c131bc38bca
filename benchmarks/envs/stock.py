"""Stock LIBERO as it is used in training: `SubprocVectorEnv`, one process per core and env."""

import multiprocessing
from functools import partial
from typing import Any

import numpy as np

from vla_envs.libero.suites import benchmark_suite, initial_states, quiet

SUITE, TASK_ID = "libero_10", 0
IMAGE_SIZE = 256
CHUNK_SIZE = 8
NUM_STOCK_ENVS = 2


def make_stock_envs(*, drawing: bool) -> Any:
    """LIBERO's vector env, reset and in its first initial states.

    Args:
        drawing: Whether to draw two cameras after every control step.
    """
    with quiet():
        from libero.libero.envs import SubprocVectorEnv

        bddl_file = benchmark_suite(SUITE).get_task_bddl_file_path(TASK_ID)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)  # a copy of this process would inherit its OpenGL
    try:
        envs = SubprocVectorEnv([partial(make_stock_env, bddl_file, drawing=drawing)] * NUM_STOCK_ENVS)
    finally:
        multiprocessing.set_start_method(method, force=True)
    reset_stock(envs, 0)
    return envs


def make_stock_env(bddl_file: str, *, drawing: bool) -> Any:
    """One env of LIBERO's."""
    with quiet():
        from libero.libero.envs import OffScreenRenderEnv

        return OffScreenRenderEnv(
            bddl_file_name=bddl_file,
            camera_heights=IMAGE_SIZE,
            camera_widths=IMAGE_SIZE,
            use_camera_obs=drawing,
            horizon=1_000_000,
        )


def reset_stock(envs: Any, init_state_id: int) -> None:
    """Begin an episode in every env: `reset`, then `set_init_state`."""
    envs.reset()
    states = initial_states(SUITE, TASK_ID)
    envs.set_init_state([states[(init_state_id + index) % len(states)] for index in range(NUM_STOCK_ENVS)])


def play_stock(envs: Any, rng: np.random.Generator, num_chunks: int) -> int:
    """Play chunks of random actions in every env; returns how many chunks that is in all."""
    for action in rng.uniform(-1, 1, (num_chunks * CHUNK_SIZE, NUM_STOCK_ENVS, 7)):
        envs.step(action)
    return num_chunks * NUM_STOCK_ENVS
