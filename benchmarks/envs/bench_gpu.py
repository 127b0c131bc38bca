"""LIBERO on a machine with a GPU, from exported scenes: what EGL draws, and what a chunked env plays.

    python -m vla_envs.libero compile --suite libero_spatial --out SCENES --detail fast     # on any machine with LIBERO
    python -m vla_envs.libero compile --suite libero_spatial --out SCENES --task-ids 0
    python benchmarks/envs/bench_gpu.py --scene-dir SCENES

Prints one JSON line per measurement. Needs neither LIBERO nor robosuite. `every step, two cameras` is the work that stock
LIBERO does per action; the ratio of the two chunk rates is what drawing once per chunk saves on this machine.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from vla_envs.libero.env import LiberoEnv


def frames_per_second(detail: str, scene_dir: Path, *, slots: int, seconds: float) -> dict[str, Any]:
    """Frames drawn per second, with nothing else going on."""
    env = LiberoEnv(slots, suite="libero_spatial", task_ids=[0], chunk_size=8, detail=detail, scene_dir=scene_dir)
    env.reset(seed=0)
    state = env.get_state()
    env.set_state(state)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        env.set_state(state)
        count += slots
    result = {"what": "frames/s", "detail": detail, "renderer": env.renderer, "value": count / (time.perf_counter() - start)}
    env.close()
    return result


def chunks_per_second(
    detail: str,
    scene_dir: Path,
    *,
    task_ids: list[int],
    num_envs: int,
    seconds: float,
    as_stock: bool,
    cameras: tuple[str, ...],
) -> dict[str, Any]:
    """Chunks of 8 random actions per second; `as_stock` draws two cameras after every action, as stock LIBERO does."""
    env = LiberoEnv(
        num_envs,
        suite="libero_spatial",
        task_ids=task_ids,
        chunk_size=1 if as_stock else 8,
        detail=detail,
        scene_dir=scene_dir,
        cameras=("agentview", "wrist") if as_stock else cameras,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    began = time.perf_counter()
    env.reset(seed=0)
    first_reset_s = time.perf_counter() - began
    random = np.random.default_rng(0)
    shape = env.action_space.shape
    env.step(random.uniform(-1, 1, shape))
    actions, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        info = env.step(random.uniform(-1, 1, shape))[4]
        actions += int(info["num_steps"].sum())
    elapsed = time.perf_counter() - start
    env.close()
    return {
        "what": "chunks/s",
        "detail": detail,
        "drawn": "two cameras, every step" if as_stock else f"{len(cameras)} cameras, once per chunk",
        "num_envs": num_envs,
        "tasks": len(task_ids),
        "value": actions / 8 / elapsed,
        "control_steps_per_s": actions / elapsed,
        "first_reset_s": first_reset_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene-dir", type=Path, required=True, help="folder of exported scenes of libero_spatial")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="per measurement")
    arguments = parser.parse_args()
    common = {"num_envs": arguments.num_envs, "seconds": arguments.seconds}
    tasks = sorted(int(file.name.split("_")[2]) for file in arguments.scene_dir.glob("libero_spatial_*_fast.scene"))
    full = [task for task in tasks if (arguments.scene_dir / f"libero_spatial_{task:02d}_full.scene").exists()]
    once, none = ("agentview",), ()

    def show(result: dict[str, Any]) -> None:
        print(
            json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in result.items()}),
            flush=True,
        )

    for detail in ("full", "fast"):
        show(frames_per_second(detail, arguments.scene_dir, slots=16, seconds=arguments.seconds))
    for detail, task_ids in (("full", full), ("fast", tasks)):
        for as_stock, cameras in ((True, once), (False, once), (False, none)):
            show(
                chunks_per_second(detail, arguments.scene_dir, task_ids=task_ids, as_stock=as_stock, cameras=cameras, **common)
            )


if __name__ == "__main__":
    main()
