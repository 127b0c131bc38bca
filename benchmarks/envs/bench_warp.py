"""IsaacEnv on Warp, on a machine with a GPU: how fast worlds play, by their number, and what they cost.

    python -m vla_envs.libero compile --suite libero_goal --out SCENES --tasks 0 --detail fast   # on any machine with LIBERO
    python benchmarks/envs/bench_warp.py --scene-dir SCENES --worlds 64 256 1024 4096

Prints one JSON line per measurement. Worlds begin in random states of their own and play random actions. `first_reset_s` holds
the compilation of what is not in Warp's cache yet. The last line is `Libero-v0` on this machine's cores, drawn by OpenGL.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import warp

from vla_envs.isaac.env import IsaacEnv
from vla_envs.vector.base import ChunkedVectorEnv

CHUNK_SIZE = 8


def measure(env: ChunkedVectorEnv, *, seconds: float) -> dict[str, Any]:
    """Chunks of random actions per second; closes the env."""
    began, free = time.perf_counter(), _free_bytes()
    env.reset(seed=0)
    reset_s = time.perf_counter() - began
    random = np.random.default_rng(0)
    chunks = random.uniform(-1, 1, (4, *env.action_space.shape)).astype(np.float32)
    env.step(chunks[0])
    steps, calls, faults, start = 0, 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        info = env.step(chunks[calls % len(chunks)])[4]
        steps, calls = steps + int(info["num_steps"].sum()), calls + 1
        faults += sum(fault is not None for fault in info.get("fault", []))
    elapsed, used = time.perf_counter() - start, free - _free_bytes()
    began = time.perf_counter()
    env.reset(seed=1)
    result = {
        "control_steps_per_s": round(steps / elapsed),
        "chunks_per_s": round(steps / elapsed / CHUNK_SIZE, 1),
        "ms_per_call": round(1e3 * elapsed / calls, 2),
        "faults": faults,
        "first_reset_s": round(reset_s, 1),
        "reset_s": round(time.perf_counter() - began, 2),
        "gpu_mb_per_world": round(used / 1e6 / env.num_envs, 3),
        "renderer": env.renderer,
    }
    env.close()
    return result


def _free_bytes() -> int:
    device = warp.get_preferred_device()
    return int(device.free_memory) if device.is_cuda else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene-dir", type=Path, default=None)
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--task-id", type=int, default=0)
    parser.add_argument("--worlds", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--pictures", nargs="+", choices=("none", "fast", "match"), default=["none", "fast", "match"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--mujoco-envs", type=int, default=64, help="slots of Libero-v0 to compare with; 0: none")
    arguments = parser.parse_args()
    common: dict[str, Any] = {
        "suite": arguments.suite,
        "task_id": arguments.task_id,
        "scene_dir": arguments.scene_dir,
        "detail": "fast",
        "image_size": arguments.image_size,
        "chunk_size": CHUNK_SIZE,
        "max_episode_steps": 10**6,
    }
    for pictures in arguments.pictures:
        for num_worlds in arguments.worlds:
            looks = {"cameras": ()} if pictures == "none" else {"quality": pictures, "arrays": "torch"}
            env = IsaacEnv(num_worlds, backend="warp", device=arguments.device, **looks, **common)
            print(
                json.dumps({"worlds": num_worlds, "pictures": pictures} | measure(env, seconds=arguments.seconds)), flush=True
            )
    if arguments.mujoco_envs:
        env = IsaacEnv(arguments.mujoco_envs, backend="mujoco", **common)
        print(json.dumps({"mujoco_slots": arguments.mujoco_envs} | measure(env, seconds=arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
