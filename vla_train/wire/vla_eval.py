"""vla-eval's protocol, version 1 (written for vla-eval 0.8): what its LIBERO benchmark sends, and what it plays.

    client: hello                                                  server: hello
            episode_start
            observation {images, task_description[, states]}               action {"actions": (7,), or (K, 7)}, or error
            ...
            episode_end

A message is {type, payload, seq, timestamp}; an answer has the `seq` of its question. `hello` and `observation` are answered
once each, `episode_start` and `episode_end` never.

Its images are `images.agentview` and `images.wrist`. Its gripper is ours, +1 to close, and its benchmark plays the sign of it.
Its state has rotations of up to half a turn, unless a server asks in its `hello` for robosuite's own (`quat_no_antipodal`),
which go up to a whole one and are those of `state` here.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_train.types import IMAGE
from vla_train.wire.packing import WireError, pack, unpack
from vla_train.wire.reading import STATE, WRIST, read_image, read_instruction, read_state

VERSION = 1
_CAMERAS = {IMAGE: "agentview", WRIST: "wrist"}
TYPES = ("hello", "observation", "action", "episode_start", "episode_end", "error")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of either side."""

    type: str
    payload: dict[str, Any]
    seq: int
    """Number that the client gives its messages."""


def pack_message(kind: str, payload: Mapping[str, Any], *, seq: int) -> bytes:
    assert kind in TYPES
    return pack({"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()})


def unpack_message(data: bytes | str) -> Message:
    """Raises: WireError: It is no message of this protocol."""
    found = unpack(data)
    if not isinstance(found, dict):
        raise WireError(f"a message must be a map, got {type(found).__name__}")
    missing = [name for name in ("type", "payload", "seq") if name not in found]
    if missing:
        raise WireError(f"a message must have {', '.join(missing)}, got {', '.join(map(str, found)) or 'nothing'}")
    kind, payload, seq = found["type"], found["payload"], found["seq"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise WireError(f"type must be one of {', '.join(TYPES)}, got {kind!r}")
    if not isinstance(payload, dict):
        raise WireError(f"the payload of {kind} must be a map, got {type(payload).__name__}")
    if not isinstance(seq, int):
        raise WireError(f"seq must be a whole number, got {seq!r}")
    return Message(kind, payload, seq)


def check_version(hello: Message) -> None:
    """Raises: WireError: The other side speaks another version."""
    version = hello.payload.get("protocol_version")
    if not isinstance(version, int) or version != VERSION:
        raise WireError(f"protocol_version {version!r}: this side speaks {VERSION}")


def pack_observation(arrays: Mapping[str, np.ndarray], instruction: str, *, half_turns: bool) -> dict[str, Any]:
    """The payload of an observation.

    Args:
        arrays: Some of `OBSERVED`, of one slot.
        instruction: The task.
        half_turns: Whether the state's rotation goes up to half a turn only.
    """
    payload: dict[str, Any] = {
        "images": {camera: arrays[key] for key, camera in _CAMERAS.items() if key in arrays},
        "task_description": instruction,
    }
    if STATE in arrays:
        payload["states"] = with_half_turns(arrays[STATE]) if half_turns else arrays[STATE]
    return payload


def read_observation(payload: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], str]:
    """The arrays named in `keys`, and the instruction.

    Raises:
        WireError: One is missing or is not what it should be.
    """
    images = payload.get("images")
    if not isinstance(images, dict):
        raise WireError(f"observation must have images by camera, got {', '.join(map(str, payload)) or 'nothing'}")
    arrays = {}
    for key in keys:
        if key in _CAMERAS:
            arrays[key] = read_image(images.get(_CAMERAS[key]), f"images.{_CAMERAS[key]}")
        else:
            arrays[key] = read_state(payload.get("states"), "states")
    return arrays, read_instruction(payload.get("task_description"), "task_description")


def with_half_turns(state: np.ndarray) -> np.ndarray:
    """A state (8,) whose rotation, an axis-angle of up to a whole turn, is the same one of up to half a turn."""
    angle = float(np.linalg.norm(state[3:6].astype(np.float64)))
    if angle <= np.pi:
        return state
    turned = np.array(state)
    turned[3:6] *= 1 - 2 * np.pi / angle
    return turned


def play_gripper(actions: np.ndarray) -> np.ndarray:
    """What vla-eval's LIBERO benchmark plays of actions (..., 7): a gripper below 0 opens, any other closes."""
    played = np.array(actions)
    played[..., -1] = np.where(actions[..., -1] < 0, -1.0, 1.0)
    return played


ACTION_SPEC = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1.0, 1.0]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1.0, 1.0]},
}
"""What its LIBERO benchmark takes."""
_OBSERVATION_SPEC = {
    IMAGE: {"agentview": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}},
    WRIST: {"wrist": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}},
    STATE: {"state": {"name": "state", "dims": 8, "format": "eef_pos3_axisangle3_gripper2"}},
}
_ASKED_FOR = {IMAGE: {}, WRIST: {"send_wrist_image": True}, STATE: {"send_state": True, "quat_no_antipodal": True}}


def server_hello(server: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """The payload of a server's hello: what its policy reads, and what it gives."""
    asked: dict[str, Any] = {"env_seed": 0}  # fixtures then stand where they stand in our envs
    spec: dict[str, Any] = {"language": {"name": "language", "dims": 0, "format": "language"}}
    for key in keys:
        asked |= _ASKED_FOR[key]
        spec |= _OBSERVATION_SPEC[key]
    return {
        "harness_version": "vla-train",
        "protocol_version": VERSION,
        "model_server": server,
        "capabilities": {},
        "observation_params": asked,
        "action_spec": ACTION_SPEC,
        "observation_spec": spec,
    }
