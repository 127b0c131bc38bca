"""The engine seam on Warp: slots become worlds, those of one scene side by side in batches.

A batch is as large as its scene needed when it was made. An env of one task has one batch of all its slots; where tasks rotate
through slots, a scene may have several. All worlds of a batch are simulated and drawn together: one that stands still costs as
much as one that plays.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import warp as wp

from vla_envs.errors import NotResetError
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.vector.arrays import on_host
from vla_envs.vector.cameras import DrawnCamera
from vla_envs.vector.control import CONTROL_MODES, ControlMode
from vla_envs.vector.engine import NOBODY, EngineScene, StepResult
from vla_envs.vector.look import Look
from vla_envs.warp.cameras import Cameras
from vla_envs.warp.device import WarpDevice, silence_explained, wait
from vla_envs.warp.worlds import FAULTS, Worlds

_OUTCOME = ("played", "reached", "faults")
_FELT, _ROBOT_STATE = "proprioception", "robot_state"
_CAMERA_POSES = ("cam_xpos", "cam_xmat")


class _Batch:
    """Worlds of one scene with their cameras, and what comes of both."""

    def __init__(
        self,
        scene: LiberoEngineScene,
        num_worlds: int,
        *,
        control: ControlMode,
        cameras: Sequence[DrawnCamera],
        quality: str,
        device: WarpDevice,
    ) -> None:
        self.worlds = Worlds(scene, num_worlds, control=control)
        wanted = [(camera, scene.camera_id(camera.name)) for camera in cameras]
        self.cameras = Cameras(self.worlds, wanted, quality=quality) if wanted else None
        self.free = list(range(num_worlds))
        self.results = {name: getattr(self.worlds, name) for name in (*_OUTCOME, _FELT, _ROBOT_STATE)}
        """Arrays over all worlds, on the device: what cameras draw, by their names, and arrays of `Worlds` by name."""
        self.results |= {name: getattr(self.worlds.seen, name) for name in _CAMERA_POSES}
        if self.cameras is not None:
            self.results |= self.cameras.images
            self.results |= {_depth(name): depth for name, depth in self.cameras.depths.items()}
            self.results |= {_segmentation(name): bodies for name, bodies in self.cameras.segmentations.items()}
        self._device = device
        self._hosts: dict[str, wp.array] = {}

    def draw(self) -> None:
        if self.cameras is not None:
            self.cameras.draw()

    def fetch(self, name: str) -> None:
        """Begin to copy a result to the host."""
        if name not in self._hosts:
            self._hosts[name] = self._device.room_on_host(self.results[name])
        wp.copy(self._hosts[name], self.results[name])

    def fetched(self, name: str) -> np.ndarray:
        """What `fetch` has copied, once the device was waited for; valid until it is called again."""
        return self._hosts[name].numpy()


def _depth(camera: str) -> str:
    return f"{camera} depth"


def _segmentation(camera: str) -> str:
    return f"{camera} segmentation"


class _Home(NamedTuple):
    """Where a slot lives."""

    scene: EngineScene
    batch: _Batch
    world: int


class _Share(NamedTuple):
    """What a call asks of one batch."""

    batch: _Batch
    rows: list[int]
    """Places in the call's slots of those that live in the batch, ..."""
    worlds: list[int]
    """... and their worlds."""


class WarpEngine:
    """N slots of physics and cameras on one of Warp's devices.

    Args:
        num_slots: N.
        cameras: What is drawn: cameras of the model.
        quality: See `Cameras`.
        device: Where.
        tensors: Give pictures and proprioception as PyTorch tensors on the device, instead of copying them to the host.
        control: How `step` commands the arm.
    """

    films = False

    def __init__(
        self,
        num_slots: int,
        *,
        cameras: Sequence[DrawnCamera],
        quality: str,
        device: WarpDevice,
        tensors: bool,
        control: ControlMode = CONTROL_MODES["osc_delta"],
    ) -> None:
        self.num_slots, self._control = num_slots, control
        self._cameras, self._quality = tuple(cameras), quality
        self._device, self._tensors = device, tensors
        self._busy = threading.RLock()
        self._closed = False
        self._batches: dict[EngineScene, list[_Batch]] = {}
        self._homes: list[_Home | None] = [None] * num_slots

    @property
    def renderer(self) -> str:
        return f"Warp on {self._device.name}" if self._cameras else ""

    def begin(self, slots: Sequence[int], scenes: Sequence[EngineScene], states: Sequence[np.ndarray]) -> None:
        with self._busy:
            self._house(slots, scenes)
            with self._device.turn():
                for batch, rows, worlds in self._shares(slots):
                    batch.worlds.begin(worlds, [states[row] for row in rows])

    def room_to_settle(self, slots: Sequence[int], scenes: Sequence[EngineScene]) -> Mapping[EngineScene, int]:
        with self._busy:
            self._house(slots, scenes)
            return {scene: -count % self._num_worlds(scene) for scene, count in Counter(scenes).items()}

    def settle(
        self, slots: Sequence[int], scenes: Sequence[EngineScene], states: Sequence[np.ndarray], actions: np.ndarray
    ) -> list[Any]:
        """As `Engine.settle`. All worlds of a scene take part, and those that are being played go back to where they were."""
        with self._busy:
            self._house(slots, scenes[: len(slots)])
            settled: list[Any] = [None] * len(states)
            for scene in dict.fromkeys(scenes):
                rows = [row for row, other in enumerate(scenes) if other is scene]
                for batch in cycle(self._batches[scene]):
                    taken, rows = rows[: batch.worlds.num_worlds], rows[batch.worlds.num_worlds :]
                    if not taken:
                        break
                    with self._device.turn():
                        saved = batch.worlds.settle([states[row] for row in taken], actions)
                    for row, world in zip(taken, saved, strict=True):
                        settled[row] = world
            return settled

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
        assert not film, "it draws all worlds together, once per chunk"
        with self._busy:
            shares = self._shares(slots)
            with self._device.turn():
                for batch, rows, worlds in shares:
                    limits = np.zeros(batch.worlds.num_worlds, np.int32)
                    limits[worlds] = num_steps[rows]
                    chunk = self._spread(actions[rows], worlds, batch.worlds.num_worlds)
                    batch.worlds.play(chunk, wp.array(limits, device="cpu", copy=False), until_goal=until_goal)
                    for name in _OUTCOME:
                        batch.fetch(name)
                    if draw:
                        batch.draw()
            self._device.wait()
            played, reached, faults = np.zeros(len(slots), np.int32), np.zeros(len(slots), bool), [""] * len(slots)
            for batch, rows, worlds in shares:
                played[rows] = batch.fetched("played")[worlds]
                reached[rows] = batch.fetched("reached")[worlds] > 0
                for row, fault in zip(rows, batch.fetched("faults")[worlds], strict=True):
                    faults[row] = FAULTS[fault]
            return StepResult(num_steps=played, goal_reached=reached, faults=tuple(faults))

    def draw(self, slots: Sequence[int]) -> None:
        with self._busy:
            with self._device.turn():
                for batch, _, _ in self._shares(slots):
                    batch.draw()
            self._device.wait()

    def pictures(self) -> dict[str, Any]:
        with self._busy:
            return {camera.name: self._gathered(camera.name, range(self.num_slots)) for camera in self._cameras}

    def depths(self) -> dict[str, Any]:
        with self._busy:
            names = [camera.name for camera in self._cameras if camera.depth]
            return {name: self._gathered(_depth(name), range(self.num_slots)) for name in names}

    def segmentations(self) -> dict[str, Any]:
        with self._busy:
            names = [camera.name for camera in self._cameras if camera.segmentation]
            return {name: self._gathered(_segmentation(name), range(self.num_slots)) for name in names}

    def camera_poses(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        slots = list(range(self.num_slots))
        with self._busy:
            ids = [self._home(slot).scene.camera_id(camera) for slot in slots]
            positions, rotations = (on_host(self._gathered(name, slots))[slots, ids] for name in _CAMERA_POSES)
            return positions, rotations.reshape(-1, 3, 3)

    def proprioception(self, slots: Sequence[int]) -> Any:
        with self._busy:
            return self._gathered(_FELT, slots)

    def robot_state(self, slots: Sequence[int]) -> Any:
        with self._busy:
            return self._gathered(_ROBOT_STATE, slots)

    def save(self, slots: Sequence[int]) -> list[Any]:
        with self._busy, self._device.turn():
            saved: list[Any] = [None] * len(slots)
            for batch, rows, worlds in self._shares(slots):
                for row, world in zip(rows, batch.worlds.save(worlds), strict=True):
                    saved[row] = world
            return saved

    def restore(self, slots: Sequence[int], scenes: Sequence[EngineScene], saved: Sequence[Any]) -> None:
        with self._busy:
            self._house(slots, scenes)
            with self._device.turn():
                for batch, rows, worlds in self._shares(slots):
                    batch.worlds.restore(worlds, [saved[row] for row in rows])
                    batch.draw()  # what is seen is saved too: the pictures are those of then
            self._device.wait()

    def dress(self, looks: Mapping[int, Look]) -> None:
        raise AssertionError("all worlds look alike")

    def get_state(self, slot: int) -> np.ndarray:
        with self._busy, self._device.turn():
            home = self._home(slot)
            return home.batch.worlds.state(home.world)

    def set_state(self, slot: int, state: np.ndarray) -> None:
        with self._busy:
            home = self._home(slot)
            with self._device.turn():
                home.batch.worlds.set_states([home.world], [state])

    def close(self) -> None:
        with self._busy:
            self._closed = True
            with self._device.turn():
                wait()
                self._batches.clear()
                self._homes = [None] * self.num_slots

    def _house(self, slots: Sequence[int], scenes: Sequence[EngineScene]) -> None:
        """Give each slot a world of its scene.

        Raises:
            ValueError: The device has no memory for the worlds.
        """
        self._check_open()
        moving = []
        for slot, scene in zip(slots, scenes, strict=True):
            home = self._homes[slot]
            if home is not None and home.scene is scene:
                continue
            if home is not None:
                home.batch.free.append(home.world)
                self._homes[slot] = None
            moving.append((slot, scene))
        self._forget_scenes({scene for _, scene in moving})
        for index, (slot, scene) in enumerate(moving):
            batches = self._batches.setdefault(scene, [])
            batch = next((batch for batch in batches if batch.free), None)
            if batch is None:
                batch = self._new_batch(scene, sum(other is scene for _, other in moving[index:]))
                batches.append(batch)
            self._homes[slot] = _Home(scene, batch, batch.free.pop(0))

    def _forget_scenes(self, needed: set[EngineScene]) -> None:
        """Free the memory of scenes that nobody plays and nobody is about to."""
        played = {home.scene for home in self._homes if home is not None} | needed
        with self._device.turn():
            wait()
            self._batches = {scene: batches for scene, batches in self._batches.items() if scene in played}

    def _new_batch(self, scene: EngineScene, num_worlds: int) -> _Batch:
        assert isinstance(scene, LiberoEngineScene)
        try:
            with self._device.turn(), silence_explained():
                batch = _Batch(
                    scene,
                    num_worlds,
                    control=self._control,
                    cameras=self._cameras,
                    quality=self._quality,
                    device=self._device,
                )
                wait()
                return batch
        except RuntimeError as error:
            if "allocate" not in str(error):
                raise
            raise ValueError(
                f"{num_worlds} worlds do not fit into the memory of {self._device.name}: make fewer slots"
            ) from error

    def _check_open(self) -> None:
        if self._closed:
            raise NotResetError("this engine is closed: make a new one")

    def _num_worlds(self, scene: EngineScene) -> int:
        return sum(batch.worlds.num_worlds for batch in self._batches[scene])

    def _home(self, slot: int) -> _Home:
        self._check_open()
        home = self._homes[slot]
        assert home is not None, f"slot {slot} was never given a scene"
        return home

    def _shares(self, slots: Sequence[int]) -> list[_Share]:
        shares: dict[_Batch, _Share] = {}
        for row, slot in enumerate(slots):
            home = self._home(slot)
            share = shares.setdefault(home.batch, _Share(home.batch, [], []))
            share.rows.append(row)
            share.worlds.append(home.world)
        return list(shares.values())

    def _spread(self, actions: Any, worlds: Sequence[int], num_worlds: int) -> wp.array:
        """(K, num_worlds, A) float32: the actions of these worlds, zeros for the others."""
        if not isinstance(actions, np.ndarray):
            return wp.from_torch(self._device.spread_tensor(actions, worlds, num_worlds))
        chunk = np.zeros((actions.shape[1], num_worlds, actions.shape[2]), np.float32)
        chunk[:, worlds] = actions.transpose(1, 0, 2)
        return wp.array(chunk, device="cpu", copy=False)

    def _gathered(self, name: str, slots: Sequence[int]) -> Any:
        """(n, ...): the rows of these slots in a result of their batches; a copy."""
        shares = self._shares(slots)
        if self._tensors:
            return self._device.gather_tensors([(share.batch.results[name], share.rows, share.worlds) for share in shares])
        with self._device.turn():
            for share in shares:
                share.batch.fetch(name)
        self._device.wait()
        first = shares[0].batch.fetched(name)
        gathered = np.empty((len(slots), *first.shape[1:]), first.dtype)
        for batch, rows, worlds in shares:
            gathered[rows] = batch.fetched(name)[worlds]
        return gathered
