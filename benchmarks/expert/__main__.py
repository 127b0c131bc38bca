"""The scripted expert on all 130 tasks. Writes docs/expert.md.

python -m benchmarks.expert                                         # 50 initial states of each: half an hour on two cores
python -m benchmarks.expert --suites libero_goal --tasks 0 7        # some tasks, printed only
"""

import argparse
import multiprocessing
from functools import partial
from pathlib import Path

from benchmarks.expert.report import write_report
from benchmarks.expert.sweep import sweep_task
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
    arguments = parser.parse_args()
    everything = [(suite, task_id) for suite in TIME_LIMITS for task_id in suite_tasks(suite)]
    work = [(suite, task_id) for suite in arguments.suites for task_id in arguments.tasks or suite_tasks(suite)]
    play = partial(sweep_task, num_states=arguments.states, noise=arguments.noise)
    results = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=8) as pool:  # scenes add up
        for result in pool.imap(play, work):
            results.append(result)
            print(f"[{len(results)}/{len(work)}] {result.line()}", flush=True)
    if work == everything:
        write_report(results, REPORT, noise=arguments.noise)
        print(f"wrote {REPORT}")


if __name__ == "__main__":
    main()
