"""What a vector env asks of physics and cameras: N slots, each holding one scene in one state.

An engine knows models, control steps and pictures. The env knows tasks, the order of starts and time limits.

Shape letters: N slots, n slots of one call, K control steps, A numbers of an action, H x W image.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import mujoco
import numpy as np

from vla_envs.vector.cameras import DrawnCamera
from vla_envs.vector.control import OSC_DELTA
from vla_envs.vector.look import Look
from vla_envs.vector.slot import GoalRecord, View

ACTION_DIM = 7
"""Of LIBERO's own controller: translation (3), rotation (3), gripper (1). See `control.py` for the others."""
PROPRIOCEPTION_DIM = 8
"""End-effector position (m), axis-angle (rad), two gripper joints (m)."""

NOBODY: Mapping[int, int] = MappingProxyType({})
"""No slot is filmed."""


class Player(ABC):
    """One simulation of one scene in native code: an mjData with its controller. Used by one thread at a time."""

    view: View
    """What is seen now; replaced in place."""
    record: GoalRecord
    """What goals look at, per control step of the last `play`."""

    @abstractmethod
    def begin(self, state: np.ndarray) -> None:
        """Start an episode from [time, qpos, qvel]: physics, controller and view forget what was before."""

    @abstractmethod
    def play(self, actions: np.ndarray, num_steps: int, law: int = OSC_DELTA) -> int:
        """Play the first `num_steps` of `actions` (K, A) by a control law, without the GIL; returns the steps completed."""

    @abstractmethod
    def save(self) -> Any:
        """A copy of the state, for episodes to begin in."""

    @abstractmethod
    def restore(self, saved: Any) -> None:
        """Begin in what `save` returned, of this or another player of the same scene."""

    def mark(self) -> None:
        """Remember this moment for `rewind`."""
        self._marked = self.save()

    def rewind(self) -> None:
        """Go back to the last `mark`: what is played again is the same to the bit."""
        self.restore(self._marked)

    @abstractmethod
    def get_state(self) -> np.ndarray:
        """[time, qpos, qvel], a copy."""

    @abstractmethod
    def set_state(self, state: np.ndarray) -> None:
        """Put the physics into [time, qpos, qvel] and look at it; the controller goes on."""

    @abstractmethod
    def fault(self) -> str:
        """Why the simulation gave up, or "" if it did not."""


class EngineScene(ABC):
    """A scene as engines take it; shared by all its players, in any number of threads.

    Args:
        model: Never written to, but for the look of switches (below).
        cameras: Camera name -> camera id of the model.
    """

    def __init__(self, model: mujoco.MjModel, cameras: Mapping[str, int]) -> None:
        self.model = model
        self.cameras = cameras
        self.switch_lock = threading.Lock()
        """Held from `show_switches` until the visualiser has read the model."""

    @property
    def drawn_as(self) -> "EngineScene":
        """The scene whose meshes and textures it shows: another one if this one differs only in where things are."""
        return self

    def camera_id(self, name: str) -> int:
        """The id of a camera of the model.

        Raises:
            ValueError: It has none of this name.
        """
        if name not in self.cameras:
            raise ValueError(f"the scene has no camera {name!r}, only {', '.join(map(repr, self.cameras))}")
        return self.cameras[name]

    def check_cameras(self, cameras: Iterable[DrawnCamera]) -> None:
        """Raise `ValueError` for one that should be the model's and is not."""
        for camera in cameras:
            if camera.own is None:
                self.camera_id(camera.name)

    @abstractmethod
    def new_player(self) -> Player:
        """A simulation of its own."""

    @abstractmethod
    def judge(self, record: GoalRecord, num_steps: int) -> np.ndarray:
        """(num_steps,) bool: whether the goal held after each control step."""

    @abstractmethod
    def show_switches(self, on: np.ndarray) -> None:
        """Make the model look as with these visual switches on, (V,) bool."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What happened to n slots."""

    num_steps: np.ndarray
    """(n,) int32: control steps played; fewer than asked for if the goal was reached or the physics gave up."""
    goal_reached: np.ndarray
    """(n,) bool: whether the goal held after the last of them."""
    faults: tuple[str, ...]
    """n reasons why the physics gave up; "" where it did not."""
    frames: Mapping[int, np.ndarray] = field(default_factory=dict)
    """By filmed slot: (F, H, W, 3) uint8, pictures within the chunk, as `Engine.pictures` has them."""


class Engine(Protocol):
    """N slots of physics and cameras. Calls do not overlap."""

    num_slots: int
    films: bool
    """Whether it can draw single slots within a chunk, and with looks of their own."""

    @property
    def renderer(self) -> str:
        """What draws, for example "llvmpipe (LLVM 15.0.6, 256 bits)"; "" if nothing does. Asking opens the device."""
        ...

    def begin(self, slots: Sequence[int], scenes: Sequence[EngineScene], states: Sequence[np.ndarray]) -> None:
        """Start an episode in each of n slots, from [time, qpos, qvel] of its scene."""
        ...

    def room_to_settle(self, slots: Sequence[int], scenes: Sequence[EngineScene]) -> Mapping[EngineScene, int]:
        """How many more states of each scene `settle` takes along for nothing, if it is given these; 0 for one not named."""
        ...

    def settle(
        self, slots: Sequence[int], scenes: Sequence[EngineScene], states: Sequence[np.ndarray], actions: np.ndarray
    ) -> list[Any]:
        """Begin an episode in each of some states, play `actions`, draw, and return what `restore` takes; goals do not end it.

        Args:
            slots: n slots whose episodes are over: in an unknown state afterwards.
            scenes: Scene of each state; the first n are those of the slots.
            states: [time, qpos, qvel] each: n, and as many more as there is room for.
            actions: (K, 7), which LIBERO's own controller (`osc_delta`) plays, whatever the engine's is.
        """
        ...

    def step(
        self,
        slots: Sequence[int],
        actions: Any,
        num_steps: np.ndarray,
        *,
        until_goal: bool = True,
        draw: bool = True,
        film: Mapping[int, int] = NOBODY,
    ) -> StepResult:
        """Play chunks, each until its goal holds, and draw each slot once, as it looks then; those that are filmed more often.

        Args:
            slots: n slots; the others do not move.
            actions: (n, K, A), finite: a NumPy array, or a tensor on the engine's device.
            num_steps: (n,) int: how many of the K to play at most.
            until_goal: Whether a chunk ends where its goal holds; False plays it through and judges nothing.
            draw: Whether slots are drawn; False leaves it to a later `draw`, which shows the same.
            film: Slots whose first camera is drawn after every so many control steps, and after the last; only with `films`
                and `draw`.
        """
        ...

    def draw(self, slots: Sequence[int]) -> None:
        """Draw slots as they look now."""
        ...

    def pictures(self) -> dict[str, Any]:
        """By camera: (N, H, W, 3) uint8, each slot as it looked when it was drawn last; a copy.

        A NumPy array, or a PyTorch tensor on the device that draws.
        """
        ...

    def depths(self) -> dict[str, Any]:
        """By camera with depth: (N, H, W, 1) float32, metres along the camera's axis, of the same instant; as `pictures`."""
        ...

    def segmentations(self) -> dict[str, Any]:
        """By camera with segmentation: (N, H, W, 1) int32, body ids of the slot's scene, -1 for none; as `pictures`."""
        ...

    def camera_poses(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """Where one of the engine's cameras is in the pictures of each slot: (N, 3) in m, (N, 3, 3) as MuJoCo's `cam_xmat`."""
        ...

    def proprioception(self, slots: Sequence[int]) -> Any:
        """(n, 8) of floats, see `PROPRIOCEPTION_DIM`; a copy, array or tensor as `pictures`."""
        ...

    def robot_state(self, slots: Sequence[int]) -> Any:
        """(n, `ROBOT_STATE_DIM`) of floats, seen at the same instant; a copy, array or tensor as `pictures`."""
        ...

    def save(self, slots: Sequence[int]) -> list[Any]:
        """For each slot a copy of all that its future depends on, and of its pictures."""
        ...

    def restore(self, slots: Sequence[int], scenes: Sequence[EngineScene], saved: Sequence[Any]) -> None:
        """Continue in each slot from what was saved in any slot with its scene; its pictures are those of then."""
        ...

    def dress(self, looks: Mapping[int, Look]) -> None:
        """Draw these slots with looks of their own, from now until they begin, or are restored, anew; only with `films`."""
        ...

    def get_state(self, slot: int) -> np.ndarray:
        """[time, qpos, qvel] of the slot."""
        ...

    def set_state(self, slot: int, state: np.ndarray) -> None:
        """Put the slot's physics into [time, qpos, qvel]."""
        ...

    def close(self) -> None:
        """Wait for what is under way, then free everything. Calling it again does nothing."""
        ...


def array_bytes(saved: Any) -> int:
    """Bytes of the arrays in what `save` returned for a slot, a tree of tuples."""
    if isinstance(saved, tuple):
        return sum(map(array_bytes, saved))
    return int(getattr(saved, "nbytes", 0))
