"""What a slot observes and takes, as Gymnasium spaces.

Invariant: they do not depend on which tasks are played, so that envs of different tasks fit into one vector env.
"""

from collections.abc import Iterable, Sequence
from string import ascii_letters, digits, punctuation

import gymnasium as gym
import numpy as np

from vla_envs.vector.cameras import DrawnCamera
from vla_envs.vector.control import ControlMode
from vla_envs.vector.engine import PROPRIOCEPTION_DIM
from vla_envs.vector.instruction import Instruction
from vla_envs.vector.robot_state import ROBOT_STATE

_CHARACTERS = ascii_letters + digits + punctuation + " "
_MAX_INSTRUCTION_LENGTH = 256


def image_key(camera: str) -> str:
    """The observation that shows a camera's picture."""
    return "image" if camera == "agentview" else f"{camera}_image"


def depth_key(camera: str) -> str:
    """The observation of a camera's distances."""
    return f"{camera}_depth"


def segmentation_key(camera: str) -> str:
    """The observation that tells bodies in a camera's picture apart."""
    return f"{camera}_segmentation"


def observation_space(
    cameras: Sequence[DrawnCamera], instructions: Iterable[str], state_keys: Sequence[str] = ()
) -> gym.spaces.Dict:
    """Of one slot. The text's limits are the same for all tasks, unless an instruction is longer or has other characters."""
    longest = max(_MAX_INSTRUCTION_LENGTH, *map(len, instructions))
    characters = "".join(sorted(set(_CHARACTERS).union(*instructions)))
    return gym.spaces.Dict(
        {
            **{image_key(camera.name): _pixels(camera, 3, 0, 255, np.uint8) for camera in cameras},
            **{depth_key(camera.name): _pixels(camera, 1, 0.0, np.inf, np.float32) for camera in cameras if camera.depth},
            **{
                segmentation_key(camera.name): _pixels(camera, 1, -1, np.iinfo(np.int32).max, np.int32)
                for camera in cameras
                if camera.segmentation
            },
            "state": gym.spaces.Box(-np.inf, np.inf, (PROPRIOCEPTION_DIM,), np.float32),
            **{key: gym.spaces.Box(-np.inf, np.inf, ROBOT_STATE[key].shape, np.float32) for key in state_keys},
            "instruction": Instruction(max_length=longest, charset=characters),
        }
    )


def _pixels(camera: DrawnCamera, channels: int, low: float, high: float, dtype: type) -> gym.spaces.Box:
    return gym.spaces.Box(low, high, (camera.height, camera.width, channels), dtype)


def action_space(chunk_size: int | None, control: ControlMode) -> gym.spaces.Box:
    """Of one slot: a chunk (K, A), or one action (A,) without `chunk_size`."""
    low, high = np.array([control.low, control.high], np.float32)
    if chunk_size is not None:
        low, high = np.tile(low, (chunk_size, 1)), np.tile(high, (chunk_size, 1))
    return gym.spaces.Box(low, high, dtype=np.float32)
