"""What `state_keys` may name: readings of the robot, under robosuite's names for them and with robosuite's signs.

An engine gives the readings of a slot as one flat row; here stands where in it each key is found. They are of the same
instant as `state`. World frame; the arm's joints are in order from base to flange.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

from vla_envs.vector.arrays import as_float32

_SHAPES: dict[str, tuple[int, ...]] = {
    "robot0_joint_pos": (7,),  # arm joints, rad
    "robot0_joint_pos_cos": (7,),  # their cosines
    "robot0_joint_pos_sin": (7,),  # their sines
    "robot0_joint_vel": (7,),  # rad/s
    "robot0_eef_pos": (3,),  # of the grip site, m
    "robot0_eef_quat": (4,),  # of the hand, x y z w; the sign is MuJoCo's
    "robot0_eef_mat": (3, 3),  # the same rotation; robosuite has no name for it
    "robot0_gripper_qpos": (2,),  # finger joints, m
    "robot0_gripper_qvel": (2,),  # m/s
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One key of the robot's state."""

    shape: tuple[int, ...]
    """Of one slot's."""
    start: int
    """Where it begins in a row."""

    def of(self, rows: Any) -> Any:
        """(n, *shape) float32 from (n, `ROBOT_STATE_DIM`), an array or a tensor."""
        return as_float32(rows[:, self.start : self.start + prod(self.shape)]).reshape(-1, *self.shape)


*_STARTS, ROBOT_STATE_DIM = accumulate(map(prod, _SHAPES.values()), initial=0)
"""Numbers in a row."""
ROBOT_STATE = {key: Reading(shape=shape, start=start) for (key, shape), start in zip(_SHAPES.items(), _STARTS, strict=True)}
"""All keys, in the order of a row."""


def check_state_keys(state_keys: Sequence[str]) -> None:
    """Raise `ValueError` unless it is a list of known keys, each once."""
    keys = tuple(ROBOT_STATE)
    known = isinstance(state_keys, list | tuple) and all(key in keys for key in state_keys)
    if not known or len(set(state_keys)) != len(state_keys):
        raise ValueError(f"state_keys must be any of {keys}, each once, or () for none, got {state_keys!r}")
