"""Where fixtures stand, against LIBERO after its usual calls: the env is made, then `seed(0)`, then `reset()`.

    python -m benchmarks.parity.fixtures                # all 130 tasks: about a quarter of an hour

No stored initial state says where fixtures stand, so `set_init_state` leaves them there.
"""

import os

os.environ.setdefault("MUJOCO_GL", "egl")

from typing import Any

import mujoco
import numpy as np

from benchmarks.parity.stock import make_stock
from vla_envs.libero.compile import compile_scene
from vla_envs.libero.scene import Scene
from vla_envs.libero.suites import TIME_LIMITS, suite_tasks


def fixture_difference(scene: Scene, stock: Any) -> float:
    """Largest difference between the two models in the pose of any body without a free joint, in m or as quaternion.

    Args:
        scene: The task, compiled.
        stock: LIBERO's env of it (`stock.make_stock`), not reset since.
    """
    ours, theirs = scene.model, stock.sim.model._model
    movable = ours.jnt_bodyid[ours.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    fixed = np.setdiff1d(np.arange(ours.nbody), movable)
    positions = np.abs(ours.body_pos[fixed] - theirs.body_pos[fixed])
    orientations = np.abs(ours.body_quat[fixed] - theirs.body_quat[fixed])
    return float(max(positions.max(), orientations.max()))


def main() -> None:
    """Compare all tasks, and print those that differ."""
    tasks = [(suite, task_id) for suite in TIME_LIMITS for task_id in suite_tasks(suite)]
    equal = 0
    for suite, task_id in tasks:
        scene = compile_scene(suite, task_id, detail="full")
        stock = make_stock(scene)
        difference = fixture_difference(scene, stock)
        stock.close()
        equal += difference == 0.0
        if difference > 0.0:
            print(f"{suite} {task_id}: a fixture differs by {difference:.1e}", flush=True)
    print(f"in {equal} of {len(tasks)} tasks every fixture stands where LIBERO's does")
    raise SystemExit(equal < len(tasks))


if __name__ == "__main__":
    main()
