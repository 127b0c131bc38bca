"""What LeRobot's evaluation observes, made of what our envs observe.

    pixels_agent_pos   {"pixels": {name: (N, H, W, 3) uint8}, "agent_pos": (N, 8) float32}
    pixels             the pictures alone
    robot_state        {"pixels": ..., "robot_state": {"eef", "gripper", "joints"}}, as LeRobot's own LIBERO env has it

Invariant: the pictures of the first two are turned as the published training sets have them, which is how ours are observed;
LeRobot's own env gives them as OpenGL draws them, and a processor of LeRobot's turns them afterwards. Only `robot_state` is for
such a processor: its pictures are turned back.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

LAYOUTS = ("pixels_agent_pos", "pixels", "robot_state")

_ROBOT_STATE = {
    ("eef", "pos"): "robot0_eef_pos",
    ("eef", "quat"): "robot0_eef_quat",
    ("eef", "mat"): "robot0_eef_mat",
    ("gripper", "qpos"): "robot0_gripper_qpos",
    ("gripper", "qvel"): "robot0_gripper_qvel",
    ("joints", "pos"): "robot0_joint_pos",
    ("joints", "vel"): "robot0_joint_vel",
}
"""LeRobot's names of what robosuite observes."""
_HAND_TO_GRIP_SITE = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float32)
"""LeRobot takes the matrix of the grip site, as the controller saw it last, beside the hand's quaternion of now: they are a
physics step apart, up to 0.005. Here both are of now."""


def state_keys(layout: str) -> tuple[str, ...]:
    """The `state_keys` that an env needs for a layout."""
    return tuple(_ROBOT_STATE.values()) if layout == "robot_state" else ()


def arrange(observation: Mapping[str, Any], pictures: Mapping[str, str], layout: str) -> dict[str, Any]:
    """An observation as LeRobot has it.

    Args:
        observation: Of a vector env.
        pictures: Its keys of pictures -> LeRobot's names of them.
        layout: One of `LAYOUTS`.
    """
    pixels = {name: observation[key] for key, name in pictures.items()}
    if layout == "pixels":
        return {"pixels": pixels}
    if layout == "pixels_agent_pos":
        return {"pixels": pixels, "agent_pos": observation["state"]}
    robot: dict[str, dict[str, np.ndarray]] = {}
    for (part, name), key in _ROBOT_STATE.items():
        robot.setdefault(part, {})[name] = observation[key]
    robot["eef"]["mat"] = robot["eef"]["mat"] @ _HAND_TO_GRIP_SITE
    return {
        "pixels": {name: np.ascontiguousarray(pixel[:, ::-1, ::-1]) for name, pixel in pixels.items()},
        "robot_state": robot,
    }


def arranged_space(space: gym.spaces.Dict, pictures: Mapping[str, str], layout: str) -> gym.spaces.Dict:
    """The space of one slot's `arrange`d observation; arguments as there."""
    pixels = gym.spaces.Dict({name: space[key] for key, name in pictures.items()})
    if layout == "pixels":
        return gym.spaces.Dict({"pixels": pixels})
    if layout == "pixels_agent_pos":
        return gym.spaces.Dict({"pixels": pixels, "agent_pos": space["state"]})
    robot: dict[str, dict[str, gym.Space]] = {}
    for (part, name), key in _ROBOT_STATE.items():
        robot.setdefault(part, {})[name] = space[key]
    return gym.spaces.Dict(
        {"pixels": pixels, "robot_state": gym.spaces.Dict({part: gym.spaces.Dict(of) for part, of in robot.items()})}
    )
