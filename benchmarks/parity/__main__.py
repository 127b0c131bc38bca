"""All 130 tasks against stock LIBERO: physics, pictures and goals. Writes docs/parity.md.

    python -m benchmarks.parity                                         # about half a minute per task
    python -m benchmarks.parity --suites libero_10 --tasks 0 3          # some tasks, printed only
    python -m benchmarks.parity --resume                                # go on after an interruption

Each task is compared in a process of its own, with scenes compiled for the purpose and removed afterwards; one that fails is
reported, and the others go on. Exits with 1 if a task failed or differs by more than is allowed.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # robosuite multiplies 7 x 7 matrices
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.parity.report import TaskParity, failures, write_report
from benchmarks.parity.task import compare_tasks
from vla_envs.libero.suites import TIME_LIMITS, suite_tasks

REPORT = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
RESULTS = Path(".benchmarks") / "parity.jsonl"
"""One finished task per line, of runs that write a report; for `--resume`."""


def main() -> None:
    """Compare the tasks asked for, print a line for each, and write the report if all were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=list(TIME_LIMITS), help="default: the five of LIBERO")
    parser.add_argument("--tasks", type=int, nargs="+", help="task ids (default: all)")
    parser.add_argument("--processes", type=int, default=1, help="tasks at once; each takes about 2 GB")
    parser.add_argument(
        "--resume", action="store_true", help=f"keep what {RESULTS} holds of an interrupted run that writes a report"
    )
    parser.add_argument(
        "--report", type=Path, help=f"where to write it (default: {REPORT.name} in docs, if all tasks are asked for)"
    )
    arguments = parser.parse_args()
    everything = [(suite, task_id) for suite in TIME_LIMITS for task_id in suite_tasks(suite)]
    work = [(suite, task_id) for suite in arguments.suites for task_id in arguments.tasks or suite_tasks(suite)]
    report = arguments.report or (REPORT if work == everything else None)

    results = _read_results() if arguments.resume else {}
    results = {task: result for task, result in results.items() if task in work and result.error is None}
    if report is not None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("".join(_line(result) for result in results.values()))
    began, already = time.perf_counter(), len(results)
    for result in compare_tasks([task for task in work if task not in results], arguments.processes):
        results[result.suite, result.task_id] = result
        per_task_s = (time.perf_counter() - began) / (len(results) - already)
        left_min = per_task_s * (len(work) - len(results)) / 60
        print(f"[{len(results)}/{len(work)}, {left_min:.0f} min left] {result.line()}", flush=True)
        if report is not None:
            with RESULTS.open("a") as file:
                file.write(_line(result))
            write_report(report, [results[task] for task in work if task in results], work)
    if report is not None:
        write_report(report, [results[task] for task in work if task in results], work)
        print(f"written: {report}")
    failed = [result for result in results.values() if failures(result)]
    print(f"{len(results) - len(failed)} of {len(work)} tasks agree")
    raise SystemExit(len(failed) > 0)


def _line(result: TaskParity) -> str:
    return json.dumps(asdict(result)) + "\n"


def _read_results() -> dict[tuple[str, int], TaskParity]:
    if not RESULTS.exists():
        return {}
    results = [TaskParity.from_json(json.loads(line)) for line in RESULTS.read_text().splitlines()]
    return {(result.suite, result.task_id): result for result in results}


if __name__ == "__main__":
    main()
