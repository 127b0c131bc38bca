"""How many chunks per second Python allows, where cores and the GPU would allow more: threads of one process beside processes.

    python -m vla_envs.libero compile --suite libero_object --out SCENES --detail fast
    python benchmarks/envs/bench_gil.py --scene-dir SCENES

Physics, rendering and reading back are replaced by waiting as long as they take, outside of Python's lock. So `--threads` of
all workers stand for as many cores, and two free cores are enough to see what a large machine would do. Prints a JSON line per
kind.
"""

import argparse
import json
import multiprocessing
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_envs.libero import engine_scene
from vla_envs.libero.env import LiberoEnv
from vla_envs.vector import rendering

CHUNK_SIZE = 8

_meeting: Any
"""Of the workers: they begin together."""


def share(meeting: Any, arguments: argparse.Namespace) -> None:
    """Have this process wait instead of computing."""
    global _meeting
    _meeting = meeting

    def play(*call: Any) -> int:
        time.sleep(arguments.physics_ms / 1e3)
        return call[-1]

    engine_scene.play_actions = play
    mujoco.mjr_render = lambda *call: time.sleep(arguments.render_ms / 1e3)
    mujoco.mjr_readPixels = lambda *call: time.sleep(arguments.read_ms / 1e3)
    rendering.allowed_cores = lambda: 1  # threads that draw, as with a GPU


def measure(arguments: argparse.Namespace, worker: int) -> float:
    """One worker's chunks per second."""
    tasks = [(worker + place) % 10 for place in range(4)]
    env = LiberoEnv(
        arguments.envs,
        suite=arguments.suite,
        task_ids=tasks,
        detail="fast",
        scene_dir=arguments.scene_dir,
        image_size=128,
        device="cpu",
        chunk_size=CHUNK_SIZE,
        num_threads=max(1, arguments.threads // arguments.workers),
    )
    env.reset(seed=0)
    actions = np.zeros((arguments.envs, CHUNK_SIZE, 7), np.float32)
    env.step(actions)
    _meeting.wait()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < arguments.seconds:
        env.step(actions)
        count += arguments.envs
    rate = count / (time.perf_counter() - began)
    _meeting.wait()  # closing is not part of it
    env.close()
    return rate


def executor(kind: str, arguments: argparse.Namespace) -> Executor:
    """Runs the workers."""
    if kind == "thread":
        share(threading.Barrier(arguments.workers), arguments)
        return ThreadPoolExecutor(arguments.workers)
    spawn = multiprocessing.get_context("spawn")
    given = spawn.Barrier(arguments.workers), arguments
    return ProcessPoolExecutor(arguments.workers, mp_context=spawn, initializer=share, initargs=given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--scene-dir", type=Path, help="folder of exported scenes; LIBERO's cache if not given")
    parser.add_argument("--kinds", nargs="+", default=["process", "thread"], choices=["process", "thread"])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--envs", type=int, default=32, help="of each worker")
    parser.add_argument("--threads", type=int, default=64, help="of all workers together: the cores that they stand for")
    parser.add_argument("--physics-ms", type=float, default=22.0, help="that a core takes for a chunk")
    parser.add_argument("--render-ms", type=float, default=0.2)
    parser.add_argument("--read-ms", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        with executor(kind, arguments) as pool:
            rates = list(pool.map(measure, [arguments] * arguments.workers, range(arguments.workers)))
        cores = max(1, arguments.threads // arguments.workers) * arguments.workers
        told = {
            "worker": kind,
            "chunks_per_s": round(sum(rates)),
            "cores_would_allow": round(cores / arguments.physics_ms * 1e3),
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
