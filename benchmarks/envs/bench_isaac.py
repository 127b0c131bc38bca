"""IsaacEnv on a GPU: how fast worlds play, by their number, and what they cost; beside MuJoCo on this machine's cores.

On any machine with LIBERO, and then on the one with the GPU:

    python -m vla_envs.libero compile --suite libero_goal --out SCENES --task-ids 0 --detail fast
    python benchmarks/envs/bench_isaac.py --scene-dir SCENES --worlds 64 256 1024 4096

    python -m vla_envs.isaac convert --suite libero_goal --out TASKS --task-ids 0
    python benchmarks/envs/bench_isaac.py --backend isaaclab --scene-dir TASKS --worlds 64 256 1024 4096

Prints one JSON line per measurement. Worlds begin in random states of their own and play random actions. `made_s` and
`first_reset_s` hold the compilation of what is not in Warp's cache yet. `gpu_mb_per_world` is what was newly taken from the
GPU: Warp keeps freed memory, so only a process' first measurement says it all.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import warp

from vla_envs.isaac.env import IsaacEnv

CHUNK_SIZE = 8


def measure(num_worlds: int, *, seconds: float, **arguments: Any) -> dict[str, Any]:
    """Chunks of random actions per second."""
    free, began = _free_bytes(), time.perf_counter()
    env = IsaacEnv(num_worlds, **arguments)
    made = time.perf_counter()
    env.reset(seed=0)
    reset = time.perf_counter()
    random = np.random.default_rng(0)
    chunks = random.uniform(-1, 1, (4, *env.action_space.shape)).astype(np.float32)
    env.step(chunks[0])
    steps, calls, faults, start = 0, 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        info = env.step(chunks[calls % len(chunks)])[4]
        steps, calls = steps + int(info["num_steps"].sum()), calls + 1
        faults += sum(fault is not None for fault in info.get("fault", []))
    elapsed, used = time.perf_counter() - start, free - _free_bytes()
    again = time.perf_counter()
    env.reset(seed=0)
    result = {
        "control_steps_per_s": round(steps / elapsed),
        "chunks_per_s": round(steps / elapsed / CHUNK_SIZE, 1),
        "ms_per_call": round(1e3 * elapsed / calls, 2),
        "faults": faults,
        "made_s": round(made - began, 1),
        "first_reset_s": round(reset - made, 1),
        "reset_s": round(time.perf_counter() - again, 2),
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
    parser.add_argument("--backend", choices=("warp", "isaaclab"), default="warp")
    parser.add_argument("--scene-dir", type=Path, default=None, help="compiled scenes, or with isaaclab converted tasks")
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--task-id", type=int, default=0)
    parser.add_argument("--worlds", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--pictures", nargs="+", choices=("none", "fast", "match"), default=["none", "fast", "match"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--mujoco-envs", type=int, default=0, help="slots of MuJoCo to compare with (default: none)")
    arguments = parser.parse_args()
    if arguments.mujoco_envs and arguments.backend == "isaaclab":
        parser.error("--mujoco-envs needs compiled scenes, and --scene-dir names converted tasks")
    common: dict[str, Any] = {
        "suite": arguments.suite,
        "task_id": arguments.task_id,
        "scene_dir": arguments.scene_dir,
        "image_size": arguments.image_size,
        "chunk_size": CHUNK_SIZE,
        "max_episode_steps": 10**6,
    }
    if arguments.backend == "warp":
        common |= {"detail": "fast", "num_starts": None}
    for pictures in arguments.pictures:
        for num_worlds in arguments.worlds:
            looks = {"cameras": ()} if pictures == "none" else {"quality": pictures, "arrays": "torch"}
            played = measure(
                num_worlds, seconds=arguments.seconds, backend=arguments.backend, device=arguments.device, **looks, **common
            )
            _print({"worlds": num_worlds, "backend": arguments.backend, "pictures": pictures} | played)
    if arguments.mujoco_envs:
        played = measure(arguments.mujoco_envs, seconds=arguments.seconds, backend="mujoco", **common)
        _print({"slots": arguments.mujoco_envs, "backend": "mujoco", "pictures": "OpenGL"} | played)


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
