"""One task compared with stock LIBERO in every respect, and many of them, each in a process of its own."""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from benchmarks.parity.fixtures import fixture_difference
from benchmarks.parity.goals import compare_goals
from benchmarks.parity.images import (
    compare_episode_images,
    compare_images,
    open_engine,
    psnr_of_fast_detail,
    states_to_draw,
)
from benchmarks.parity.report import TaskParity
from benchmarks.parity.states import compare_states
from benchmarks.parity.stock import make_stock
from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene

TASK_TIMEOUT_S = 1800
NUM_GOAL_STATES = 100


def compare_task(suite: str, task_id: int) -> TaskParity:
    """Compare one task in this process; what goes wrong is part of the result."""
    began = time.perf_counter()
    parts: dict = {}
    error = None
    with tempfile.TemporaryDirectory(prefix="vla_envs-parity-") as cache:
        os.environ["VLA_ENVS_CACHE"] = cache
        try:
            load_scene(suite, task_id)  # compiles; what is compared has been through the file
            scene = load_scene(suite, task_id)
            engine_scene, stock = LiberoEngineScene(scene), make_stock(scene)
            parts["fixtures"] = fixture_difference(scene, stock)
            start, moved, near_goal = states_to_draw(scene, seed=task_id)
            with open_engine(128):
                parts["episode_images"] = compare_episode_images(engine_scene, stock, seed=task_id, num_steps=1)
                views = [(moved, 128), (moved, 224), (moved, 256), (near_goal, 256)]
                parts["images"] = compare_images(engine_scene, stock, views)
                parts["states"] = compare_states(scene, stock, seed=task_id)
                parts["goals"] = compare_goals(scene, stock.env, num_states=NUM_GOAL_STATES, seed=task_id)
                stock.close()
                fast = LiberoEngineScene(load_scene(suite, task_id, detail="fast"))
                parts["psnr"] = psnr_of_fast_detail(engine_scene, fast, [start, moved])
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
            traceback.print_exc()
    return TaskParity(suite=suite, task_id=task_id, seconds=time.perf_counter() - began, error=error, **parts)


def compare_tasks(work: list[tuple[str, int]], num_processes: int) -> Iterator[TaskParity]:
    """Compare tasks, each in a process of its own, and give results in the order of `work`."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["libero.libero.envs", "vla_envs.libero.engine_scene"])
    with ThreadPoolExecutor(num_processes) as pool:
        yield from pool.map(lambda task: _in_own_process(*task), work)


def _in_own_process(suite: str, task_id: int) -> TaskParity:
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_compare_and_send, args=(suite, task_id, sender))
    process.start()
    sender.close()
    error = f"it took more than {TASK_TIMEOUT_S} s"
    try:
        if receiver.poll(TASK_TIMEOUT_S):
            return receiver.recv()
        process.kill()
    except EOFError:
        process.join()
        error = f"its process died (exit code {process.exitcode})"
    finally:
        process.join()
    return TaskParity(suite=suite, task_id=task_id, seconds=0.0, error=error)


def _compare_and_send(suite: str, task_id: int, sender: Connection) -> None:
    sender.send(compare_task(suite, task_id))
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # robosuite's renderers complain when the interpreter takes them down
