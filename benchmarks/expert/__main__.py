"""The scripted expert on all 130 tasks. Writes docs/expert.md.

python -m benchmarks.expert                                         # 50 initial states of each: an hour on two cores
python -m benchmarks.expert --results runs/expert.jsonl             # the same; begun again, it goes on where it stopped
python -m benchmarks.expert --suites libero_goal --tasks 0 7        # some tasks, printed only
"""

import argparse
import json
import multiprocessing
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.expert.report import write_report
from benchmarks.expert.sweep import TaskResult, sweep_task
from vla_envs.libero.suites import TIME_LIMITS, suite_tasks
from vla_envs.vector.allowance import allowed_cores

REPORT = Path(__file__).resolve().parents[2] / "docs" / "expert.md"


def main() -> None:
    """Play the tasks asked for, print a line for each, and write the page if all were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.expert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=list(TIME_LIMITS), help="default: the five of LIBERO")
    parser.add_argument("--tasks", type=int, nargs="+", help="task ids (default: all)")
    parser.add_argument("--states", type=int, default=50, help="initial states per task (default: 50, all)")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, in units of actions (default: none)")
    parser.add_argument("--processes", type=int, default=allowed_cores(), help="tasks at once (default: one per core)")
    parser.add_argument("--results", type=Path, help="keep results in this file, and play only the tasks that it lacks")
    arguments = parser.parse_args()
    everything = [(suite, task_id) for suite in TIME_LIMITS for task_id in suite_tasks(suite)]
    work = [(suite, task_id) for suite in arguments.suites for task_id in arguments.tasks or suite_tasks(suite)]
    results = {task: result for task, result in _read(arguments.results).items() if task in work}
    missing = [task for task in work if task not in results]
    play = partial(sweep_task, num_states=arguments.states, noise=arguments.noise)
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=8) as pool:  # scenes add up
        for task, result in zip(missing, pool.imap(play, missing), strict=True):
            results[task] = result
            print(f"[{len(results)}/{len(work)}] {result.line()}", flush=True)
            if arguments.results:
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                with arguments.results.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
    if work == everything:
        write_report([results[task] for task in work], REPORT, noise=arguments.noise)
        print(f"wrote {REPORT}")


def _read(file: Path | None) -> dict[tuple[str, int], TaskResult]:
    """The results of an earlier call, by suite and task id."""
    if file is None or not file.exists():
        return {}
    results = [TaskResult(**json.loads(line)) for line in file.read_text().splitlines()]
    return {(result.suite, result.task_id): result for result in results}


if __name__ == "__main__":
    main()
