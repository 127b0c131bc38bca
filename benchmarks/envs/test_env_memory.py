"""What 64 envs of one task hold at full detail, beside what they would with a model and an OpenGL context of their own each.

Everything is measured in one fresh process: first the 64 envs, which share a model, and one context per GL thread; then
three scenes that share nothing, loaded, played and drawn in addition.
"""

import json
import subprocess
import sys
from typing import Any

NUM_ENVS = 64
_PROGRAM = """
import gc, json, sys
import gymnasium as gym, numpy as np, psutil

def memory_mb():
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6

num_envs, num_separate = int(sys.argv[1]), 3
envs = gym.make_vec("Libero-Spatial-v0", num_envs=num_envs, task_ids=[0], chunk_size=1, settle_steps=1)
envs.reset(seed=0)
peak = memory_mb()
for _ in range(2):
    envs.step(np.zeros(envs.action_space.shape))
    peak = max(peak, memory_mb())

from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.vector.cameras import drawn_cameras
from vla_envs.vector.mujoco_engine import MujocoEngine

before = memory_mb()
scenes = [LiberoEngineScene(load_scene("libero_spatial", 0)) for _ in range(num_separate)]
engine = MujocoEngine(num_separate, cameras=drawn_cameras(("agentview",)))
slots = list(range(num_separate))
engine.begin(slots, scenes, [scene.scene.init_states[0] for scene in scenes])
engine.step(slots, np.zeros((num_separate, 1, 7)), np.ones(num_separate, int))
separate = (memory_mb() - before) / num_separate
print(json.dumps({"peak_mb": peak, "separate_mb": separate, "renderer": envs.renderer}), flush=True)
engine.close()
envs.close()
"""


def test_memory_of_sixty_four_envs_of_one_task(benchmark: Any) -> None:
    outputs: list[str] = []

    def measure() -> None:
        command = [sys.executable, "-c", _PROGRAM, str(NUM_ENVS)]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    benchmark.pedantic(measure, rounds=1)
    measured = json.loads(outputs[0].splitlines()[-1])
    peak, separate = measured["peak_mb"], NUM_ENVS * measured["separate_mb"]
    benchmark.extra_info.update(measured)
    print(
        f"\n{NUM_ENVS} envs of one task, 256 x 256, full detail, drawn by {measured['renderer']}: {peak:.0f} MB in all; "
        f"with models and contexts of their own {separate:.0f} MB: {separate / peak:.0f} x"
    )
    assert separate / peak >= 10.0
