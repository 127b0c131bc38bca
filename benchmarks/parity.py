"""All 130 tasks against stock LIBERO: physics, pictures and goals. Writes docs/parity.md.

    python benchmarks/parity.py                                         # about half a minute per task
    python benchmarks/parity.py --suites libero_10 --tasks 0 3          # some tasks, printed only
    python benchmarks/parity.py --resume                                # go on after an interruption

Each task is compared in a process of its own, with scenes compiled for the purpose and removed afterwards; one that fails is
reported, and the others go on. Exits with 1 if a task failed or differs by more than is allowed.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # robosuite multiplies 7 x 7 matrices
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parity_goals import compare_goals
from benchmarks.parity_images import (
    compare_episode_images,
    compare_images,
    open_engine,
    psnr_of_fast_detail,
    states_to_draw,
)
from benchmarks.parity_report import TaskParity, failures, write_report
from benchmarks.parity_states import compare_states
from benchmarks.parity_stock import make_stock
from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.suites import TIME_LIMITS, suite_tasks

REPORT = Path(__file__).resolve().parents[1] / "docs" / "parity.md"
RESULTS = Path(".benchmarks") / "parity.jsonl"
"""One finished task per line, for `--resume`."""
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
            start, moved, near_goal = states_to_draw(scene, seed=task_id)
            with open_engine():
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


def main() -> None:
    """Compare the tasks asked for, print a line for each, and write the report if all were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=list(TIME_LIMITS), help="default: the five of LIBERO")
    parser.add_argument("--tasks", type=int, nargs="+", help="task ids (default: all)")
    parser.add_argument("--processes", type=int, default=1, help="tasks at once; each takes about 2 GB")
    parser.add_argument("--resume", action="store_true", help=f"keep what {RESULTS} holds of an interrupted run")
    parser.add_argument(
        "--report", type=Path, help=f"where to write it (default: {REPORT.name} in docs, if all tasks are asked for)"
    )
    arguments = parser.parse_args()
    everything = [(suite, task_id) for suite in TIME_LIMITS for task_id in suite_tasks(suite)]
    work = [(suite, task_id) for suite in arguments.suites for task_id in arguments.tasks or suite_tasks(suite)]
    report = arguments.report or (REPORT if work == everything else None)

    results = _read_results() if arguments.resume else {}
    results = {task: result for task, result in results.items() if task in work and result.error is None}
    if not arguments.resume:
        RESULTS.unlink(missing_ok=True)
    RESULTS.parent.mkdir(exist_ok=True)
    began, already = time.perf_counter(), len(results)
    for result in compare_tasks([task for task in work if task not in results], arguments.processes):
        results[result.suite, result.task_id] = result
        with RESULTS.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        per_task_s = (time.perf_counter() - began) / (len(results) - already)
        left_min = per_task_s * (len(work) - len(results)) / 60
        print(f"[{len(results)}/{len(work)}, {left_min:.0f} min left] {result.line()}", flush=True)
        if report is not None:
            write_report(report, [results[task] for task in work if task in results], work)
    if report is not None:
        write_report(report, [results[task] for task in work if task in results], work)
        print(f"written: {report}")
    failed = [result for result in results.values() if failures(result)]
    print(f"{len(results) - len(failed)} of {len(work)} tasks agree")
    raise SystemExit(len(failed) > 0)


def _read_results() -> dict[tuple[str, int], TaskParity]:
    if not RESULTS.exists():
        return {}
    results = [TaskParity.from_json(json.loads(line)) for line in RESULTS.read_text().splitlines()]
    return {(result.suite, result.task_id): result for result in results}


if __name__ == "__main__":
    main()
