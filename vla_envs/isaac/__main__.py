"""`python -m vla_envs.isaac convert`: writes a suite's tasks for Isaac Lab, to be used where LIBERO is not installed."""

import argparse
import logging
import sys
from pathlib import Path

from vla_envs.libero.arguments import choose_tasks
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.libero.suites import suite_tasks


def main() -> None:
    """Parse and run; errors are printed without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m vla_envs.isaac", description="LIBERO tasks for Isaac Lab.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write tasks as USD, for IsaacEnv(backend='isaaclab', scene_dir=...)")
    convert.add_argument("--suite", required=True, help="libero_spatial, libero_10, ... or one of LIBERO-PRO")
    convert.add_argument("--task-ids", type=int, nargs="+", help="task ids (default: all)")
    convert.add_argument("--out", required=True, type=Path, help="folder; created if missing")
    convert.add_argument("--scene-dir", type=Path, help="folder of exported scenes; then LIBERO need not be installed")
    convert.add_argument("--num-starts", type=int, default=1000, help="random starts per task (default: 1000)")
    arguments = parser.parse_args()
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)
    try:
        _convert(arguments)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _convert(arguments: argparse.Namespace) -> None:
    if arguments.num_starts < 1:
        raise ValueError(f"--num-starts must be at least 1, got {arguments.num_starts}")
    tasks = suite_tasks(arguments.suite, scene_dir=arguments.scene_dir)
    task_ids = choose_tasks(arguments.suite, tasks, task_ids=arguments.task_ids)
    from vla_envs.isaac.lab.convert import convert_task  # needs OpenUSD

    failures = []
    for done, task_id in enumerate(task_ids, 1):
        scene = shared_scene(arguments.suite, task_id, "full", arguments.scene_dir)
        try:
            file = convert_task(scene, arguments.out, num_starts=arguments.num_starts)
        except (ValueError, RuntimeError) as error:
            failures.append(task_id)
            print(f"[{done}/{len(task_ids)}] task {task_id}: not converted: {error}", file=sys.stderr, flush=True)
            continue
        print(f"[{done}/{len(task_ids)}] task {task_id}: {file}", flush=True)
    if failures:
        raise ValueError(f"{len(failures)} of {len(task_ids)} tasks were not converted: {', '.join(map(str, failures))}")


if __name__ == "__main__":
    main()
