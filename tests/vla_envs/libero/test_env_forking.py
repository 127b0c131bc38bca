"""Forked processes: they draw if nobody has drawn before the fork, as under AsyncVectorEnv, and are refused otherwise."""

import subprocess
import sys

from fast_envs import BOWL_ON_PLATE, loaded_scene

START = """
import multiprocessing
import gymnasium as gym
import numpy as np
arguments = {"task_id": 0, "detail": "fast", "image_size": 32}
"""


def run_python(code: str) -> str:
    """What `code` prints in a process of its own; a hang is an error."""
    loaded_scene(*BOWL_ON_PLATE)  # is compiled by now
    result = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_forked_workers_of_gymnasiums_async_vector_env_draw():
    printed = run_python("""
envs = gym.make_vec(
    "Libero-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": "fork", "shared_memory": False}, **arguments
)
observation, _ = envs.reset(seed=0)
observation, *_ = envs.step(np.zeros((2, 7), np.float32))
print(bool((observation["image"].std(axis=(1, 2, 3)) > 10).all()), "bowl" in observation["instruction"][1])
envs.close()
""")
    assert printed == "True True"


def test_a_process_forked_after_something_was_drawn_is_told_to_spawn():
    printed = run_python("""
def play():
    try:
        gym.make("Libero-v0", **arguments)
    except RuntimeError as error:
        print(type(error).__name__, error, flush=True)

env = gym.make("Libero-v0", **arguments)
env.reset(seed=0)
child = multiprocessing.get_context("fork").Process(target=play)
child.start()
child.join()
env.close()
""")
    assert printed.startswith("RenderingUnavailableError")
    assert "context='spawn'" in printed
