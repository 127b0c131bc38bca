"""`python -m vla_envs.libero compile`: exports a suite's scenes, to be used where LIBERO is not installed."""

import argparse
import sys
from pathlib import Path

from vla_envs.libero.cache import export_scenes
from vla_envs.libero.suites import suite_tasks


def main() -> None:
    """Parse and run; errors are printed without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m vla_envs.libero", description="Compiled LIBERO scenes.")
    commands = parser.add_subparsers(dest="command", required=True)
    compile_parser = commands.add_parser("compile", help="export scenes into a folder, for LiberoEnv(scene_dir=...)")
    compile_parser.add_argument("--suite", required=True, help="libero_spatial, libero_10, ... or one of LIBERO-PRO")
    compile_parser.add_argument("--out", required=True, type=Path, help="folder; created if missing")
    compile_parser.add_argument(
        "--detail", choices=("full", "fast"), default="full", help="LIBERO's meshes and textures, or simplified ones"
    )
    compile_parser.add_argument("--task-ids", "--tasks", type=int, nargs="+", help="default: all")
    compile_parser.add_argument(
        "--fixture-seed", type=int, default=0, help="where fixtures stand: as after LIBERO's seed(N) and reset() (default: 0)"
    )
    arguments = parser.parse_args()
    try:
        task_ids = arguments.task_ids if arguments.task_ids is not None else list(suite_tasks(arguments.suite))
        done = 0

        def report(task_id: int, file: Path) -> None:
            nonlocal done
            done += 1
            print(f"[{done}/{len(task_ids)}] task {task_id}: {file} ({file.stat().st_size / 1e6:.1f} MB)", flush=True)

        export_scenes(
            arguments.suite,
            task_ids,
            detail=arguments.detail,
            folder=arguments.out,
            fixture_seed=arguments.fixture_seed,
            on_task=report,
        )
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
