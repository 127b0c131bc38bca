"""A converted task's scene as Isaac Lab spawns it: a USD file per part, and cameras."""

import math
from typing import Any

import isaaclab.sim as sim_utils
from isaaclab.assets import ArticulationCfg, AssetBaseCfg, RigidObjectCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sensors import CameraCfg
from isaaclab_newton.renderers import NewtonWarpRendererCfg

from vla_envs.isaac.lab.pictures import SEEN
from vla_envs.isaac.lab.task_file import ConvertedTask, Part, View

_FOCAL_LENGTH = 24.0
"""Millimetres; the opening follows from the field of view."""


def scene_cfg(task: ConvertedTask, *, num_envs: int, cameras: tuple[str, ...], pixels: int) -> InteractiveSceneCfg:
    """The scene, each part under its own name; cameras are squares of so many pixels.

    Worlds lie on top of each other and do not meet: Newton keeps them apart, and what is fixed to the world would stay at the
    origin if they were spread out.
    """
    scene = InteractiveSceneCfg(num_envs=num_envs, env_spacing=0.0, replicate_physics=True)
    joint = 0
    for part in task.parts:
        positions = task.starts.joint_positions[0, joint : joint + len(part.joints)]
        joint += len(part.joints)
        setattr(scene, part.name, _asset(task, part, dict(zip(part.joints, positions.tolist(), strict=True))))
    for name in cameras:
        setattr(scene, f"{name}_camera", _camera(name, task.views[name], pixels))
    return scene


def _asset(task: ConvertedTask, part: Part, joint_positions: dict[str, float]) -> Any:
    path = f"{{ENV_REGEX_NS}}/{part.name}"
    spawn = sim_utils.UsdFileCfg(usd_path=str((task.folder / part.file).resolve()))
    pose = {"pos": part.position, "rot": part.orientation}
    if part.kind == "arena":
        return AssetBaseCfg(prim_path=path, spawn=spawn)
    if part.kind == "object":
        return RigidObjectCfg(prim_path=path, spawn=spawn, init_state=RigidObjectCfg.InitialStateCfg(**pose))
    state = ArticulationCfg.InitialStateCfg(**pose, joint_pos=joint_positions)
    return ArticulationCfg(prim_path=path, spawn=spawn, init_state=state, actuators={})


def _camera(name: str, view: View, pixels: int) -> CameraCfg:
    where = f"/{view.frame.body}" if view.frame.body else ""
    opening = 2.0 * _FOCAL_LENGTH * math.tan(math.radians(view.fovy) / 2.0)
    return CameraCfg(
        prim_path=f"{{ENV_REGEX_NS}}{where}/{name}_camera",
        offset=CameraCfg.OffsetCfg(pos=view.frame.position, rot=view.frame.orientation, convention="opengl"),
        data_types=list(SEEN),
        width=pixels,
        height=pixels,
        update_latest_camera_pose=bool(view.frame.body),
        spawn=sim_utils.PinholeCameraCfg(focal_length=_FOCAL_LENGTH, horizontal_aperture=opening, clipping_range=(0.01, 20.0)),
        renderer_cfg=NewtonWarpRendererCfg(semantic_filter=["look"], colorize_semantic_segmentation=False),
    )
