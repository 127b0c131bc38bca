"""What a dataset of others means by its numbers and pictures: told apart by the data themselves, never assumed.

    gripper       which value opens and which closes: from how the fingers move after it
    orientation   which way round its pictures are: from pictures of the env at the same tasks' starts

Pure functions. Where the data leave doubt, that is an error which says what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

_NEAR = 0.05
"""Between a gripper's action and the value that it stands for."""
_LAG = 5
"""Steps from a command of the gripper to where the fingers show it: a quarter of a second."""
_LEAST_CORRELATION = 0.4
_GRID = 16
"""Pictures are compared as so many by so many means."""
_CLEARLY = 0.75
"""The best orientation differs from the env's pictures by at most this share of what the second best does."""

Orientation = Literal["as-is", "rotated", "flipped", "mirrored"]
"""What turns a picture of the dataset into one of the env: nothing, by 180 degrees, top to bottom, left to right."""

_TURNS: Mapping[Orientation, Callable[[np.ndarray], np.ndarray]] = {
    "as-is": lambda frames: frames,
    "rotated": lambda frames: frames[..., ::-1, ::-1, :],
    "flipped": lambda frames: frames[..., ::-1, :, :],
    "mirrored": lambda frames: frames[..., ::-1, :],
}


@dataclass(frozen=True, slots=True)
class Gripper:
    """How the last dimension of an action is stored."""

    opened: float
    closed: float

    def to_env(self, values: np.ndarray) -> np.ndarray:
        """Stored values as LIBERO's envs take them: -1 open, 1 close; what lies between stays between."""
        return np.clip(2 * (values - self.opened) / (self.closed - self.opened) - 1, -1, 1).astype(values.dtype)

    def __str__(self) -> str:
        return f"{self.opened:g} open, {self.closed:g} close"


GRIPPERS: Mapping[str, Gripper] = {
    "env": Gripper(opened=-1, closed=1),
    "openvla": Gripper(opened=1, closed=0),
    "inverted": Gripper(opened=1, closed=-1),
    "zero-one": Gripper(opened=0, closed=1),
}
"""By the names under which a user says it: as LIBERO's envs take it, as OpenVLA's sets store it, and the two others."""


def find_gripper(actions: Sequence[np.ndarray], states: Sequence[np.ndarray] | None) -> Gripper:
    """How a dataset stores the gripper.

    Args:
        actions: (T, A) of each episode, the gripper last.
        states: (T, D) of each episode, the two finger joints in m last, as LIBERO's sets have them.

    Raises:
        ValueError: The values are of no known range, there are no finger joints, or these do not follow the actions.
    """
    advice = f"say how the gripper is stored ({', '.join(f'{name}: {gripper}' for name, gripper in GRIPPERS.items())})"
    if not actions or not sum(map(len, actions)):
        raise ValueError(f"there are no actions to tell the gripper from: {advice}")
    commands = np.concatenate([episode[:, -1] for episode in actions])
    low, high = float(commands.min()), float(commands.max())
    bottom = -1.0 if low < -_NEAR else 0.0
    if low < -1 - _NEAR or high > 1 + _NEAR or (bottom == 0.0 and high < _NEAR):
        raise ValueError(f"the gripper's actions lie in {low:g} .. {high:g}, which is neither -1 .. 1 nor 0 .. 1: {advice}")
    if states is None:
        raise ValueError(f"without states it cannot be told which action closes the gripper: {advice}")
    pairs = [_after(action, state) for action, state in zip(actions, states, strict=True) if len(action) > _LAG]
    early, opening = (np.concatenate(part) for part in zip(*pairs, strict=True)) if pairs else (np.zeros(0), np.zeros(0))
    if not len(early) or np.ptp(early) < _NEAR or np.ptp(opening) < 1e-4:
        what = "the gripper gets one command only" if len(early) and np.ptp(early) < _NEAR else "the fingers never move"
        raise ValueError(f"{what}, so it cannot be told which action closes it: {advice}")
    correlation = float(np.corrcoef(early, opening)[0, 1])
    if abs(correlation) < _LEAST_CORRELATION:
        raise ValueError(
            f"the fingers do not follow the gripper's actions (correlation {correlation:.2f}; are the last two numbers of the "
            f"state the finger joints?): {advice}"
        )
    return Gripper(opened=1.0, closed=bottom) if correlation > 0 else Gripper(opened=bottom, closed=1.0)


def _after(actions: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Commands, and how far the fingers are apart a little later; both (T - lag,)."""
    return actions[:-_LAG, -1], np.abs(states[_LAG:, -2:]).sum(axis=1)


def find_orientation(frames: np.ndarray, reference: np.ndarray) -> Orientation:
    """Which way round a dataset's pictures are.

    Args:
        frames: (M, H, W, 3) uint8: first pictures of episodes.
        reference: (N, h, w, 3) uint8: pictures of the env, of the same camera, at the start of the same tasks.

    Raises:
        ValueError: Two ways fit about equally well, as for pictures of something else.
    """
    if not len(frames) or not len(reference):
        raise ValueError("the orientation of pictures needs at least one picture of the dataset and one of the env")
    coarse, wanted = _coarse(frames), _coarse(reference)
    differences: dict[Orientation, float] = {name: _difference(turn(coarse), wanted) for name, turn in _TURNS.items()}
    best, second = sorted(get_args(Orientation), key=lambda name: differences[name])[:2]
    if differences[best] > _CLEARLY * differences[second]:
        found = ", ".join(f"{name} {difference:.1f}" for name, difference in differences.items())
        raise ValueError(
            f"it cannot be told which way round the pictures are (mean difference from the env's, of 255: {found}): say it, or "
            "check that tasks and camera are the env's"
        )
    return best


def orient(frames: np.ndarray, orientation: Orientation) -> np.ndarray:
    """(..., H, W, 3) pictures of the dataset as the env has them; a view."""
    return _TURNS[orientation](frames)


def _difference(frames: np.ndarray, reference: np.ndarray) -> float:
    """Mean over frames of the mean absolute difference from the nearest reference."""
    return float(np.mean([np.abs(reference - frame).mean(axis=(1, 2, 3)).min() for frame in frames]))


def _coarse(frames: np.ndarray) -> np.ndarray:
    """(N, G, G, 3) means of patches."""
    values = frames.astype(np.float64)
    for axis in (1, 2):
        size = values.shape[axis]
        edges = np.linspace(0, size, min(_GRID, size) + 1).astype(int)
        sums = np.add.reduceat(values, edges[:-1], axis=axis)
        shape = [1] * values.ndim
        shape[axis] = -1
        values = sums / np.diff(edges).reshape(shape)
    return values
