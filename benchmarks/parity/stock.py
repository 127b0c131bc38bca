"""LIBERO's own env of a task, set up to be compared with a scene: fixtures in the same places, pictures of any size."""

from typing import Any

import numpy as np

from vla_envs.libero.scene import Scene
from vla_envs.libero.suites import benchmark_suite, quiet

STOCK_IMAGES = {"agentview": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
"""Camera name of this project -> observable of LIBERO."""


def make_stock(scene: Scene) -> Any:
    """LIBERO's `OffScreenRenderEnv` of the scene's task after `seed` and `reset`, drawing 128 x 128 pixels."""
    with quiet():
        from libero.libero.envs import OffScreenRenderEnv

        bddl_file = benchmark_suite(scene.suite).get_task_bddl_file_path(scene.task_id)
        stock = OffScreenRenderEnv(bddl_file_name=bddl_file)
        stock.seed(scene.fixture_seed)
        stock.reset()
    stock.env.hard_reset = False  # later resets are quicker so; begin_stock does what they leave out
    return stock


def begin_stock(stock: Any, scene: Scene, state: np.ndarray) -> dict[str, Any]:
    """Begin an episode as LIBERO's evaluation does, `reset` and `set_init_state`; returns LIBERO's observation.

    This reset moves LIBERO's fixtures again; they are put back to where the scene has them.
    """
    with quiet():
        stock.reset()
    gripper = stock.robots[0].gripper
    gripper.current_action = np.zeros(gripper.dof)  # a hard reset would build a new gripper
    model = stock.sim.model._model
    model.body_pos[:], model.body_quat[:] = scene.model.body_pos, scene.model.body_quat
    return stock.set_init_state(state)


def turned(observation: dict[str, Any]) -> dict[str, np.ndarray]:
    """Camera name -> picture of one of LIBERO's observations, in this project's orientation."""
    return {camera: observation[name][::-1, ::-1] for camera, name in STOCK_IMAGES.items()}


def switch_cameras(stock: Any, *, on: bool, image_size: int | None = None) -> None:
    """Let LIBERO draw its two observables, of this size, or not."""
    env = stock.env
    for name in STOCK_IMAGES.values():
        if image_size is not None:
            camera = name.removesuffix("_image")
            sensors, _ = env._create_camera_sensors(camera, image_size, image_size, False, None)
            env._observables[name]._sensor = sensors[0]  # `modify_observable` would draw to see whether it works
        env.modify_observable(name, "enabled", on)
        env.modify_observable(name, "active", on)
