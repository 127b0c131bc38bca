"""MuJoCo in C: slots are played by a thread pool, natively, and drawn by GL threads while others are still being played.

    step --slot--> worker thread: play the chunk, judge its K states at once,  --frame--> GL thread: draw --> step returns
                   rewind and replay up to the step whose goal held

Judging after the chunk costs one Python call per slot and chunk instead of one per control step. The replay is exact, because
a player is deterministic; and it is rare: once per success. What a slot does never depends on the number of threads.
No display is opened and no GL thread started before the first picture is asked for: until then the process may be forked, as
Gymnasium's AsyncVectorEnv does after it has made an env to look at its spaces.
"""

import atexit
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, NoReturn
from weakref import WeakSet

import numpy as np

from vla_envs.errors import NotResetError
from vla_envs.vector.allowance import allowed_cores
from vla_envs.vector.arrays import on_host
from vla_envs.vector.cameras import Camera, DrawnCamera
from vla_envs.vector.control import OSC_DELTA
from vla_envs.vector.engine import NOBODY, PROPRIOCEPTION_DIM, EngineScene, Player, StepResult
from vla_envs.vector.gl_context import Device, check_device, open_device
from vla_envs.vector.look import Look
from vla_envs.vector.mujoco_warnings import log_mujoco_warnings
from vla_envs.vector.options import EnvOptions
from vla_envs.vector.rendering import Frame, RenderPool
from vla_envs.vector.robot_state import ROBOT_STATE_DIM
from vla_envs.vector.slot import View, camera_pose

_open_engines: "WeakSet[MujocoEngine]" = WeakSet()
_process_ends = threading.Event()
"""Set once the main thread is done: daemon threads may still be using engines then."""


class MujocoEngine:
    """N slots on this machine's CPU, drawn by OpenGL.

    Args:
        num_slots: N.
        cameras: What is drawn.
        device: Where OpenGL draws.
        num_threads: Threads that play; None takes one per core that this process may use.
        law: Control law of `step`, a number of `control.py`.

    Raises:
        RenderingUnavailableError: There is nothing to draw with here.
    """

    films = True

    def __init__(
        self,
        num_slots: int,
        *,
        cameras: Sequence[DrawnCamera] = (),
        device: Device = "auto",
        num_threads: int | None = None,
        law: int = OSC_DELTA,
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads must be None or at least 1, got {num_threads}")
        if cameras:
            check_device(device)
        self.num_slots = num_slots
        self._law = law
        self._cameras = {camera.name: camera for camera in cameras}

        def pixels(camera: DrawnCamera, channels: int, dtype: type) -> np.ndarray:
            return np.zeros((num_slots, camera.height, camera.width, channels), dtype)

        self._images = {camera.name: pixels(camera, 3, np.uint8) for camera in cameras}
        self._depths = {camera.name: pixels(camera, 1, np.float32) for camera in cameras if camera.depth}
        self._segmentations = {camera.name: pixels(camera, 1, np.int32) for camera in cameras if camera.segmentation}
        self._drawn = [array for arrays in (self._images, self._depths, self._segmentations) for array in arrays.values()]
        self._device = device
        self._busy = threading.RLock()
        self._closed = False
        self._scenes: list[EngineScene | None] = [None] * num_slots
        self._players: list[Player | None] = [None] * num_slots
        self._looks: list[Look | None] = [None] * num_slots
        self._renderers: RenderPool | None = None
        """None until the first call that draws."""
        self.render_span: tuple[float, float] | None = None
        """When it drew last, as `ChunkedVectorEnv.render_span` says it."""
        threads = min(num_slots, num_threads or allowed_cores())
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="vla_envs-physics")
        log_mujoco_warnings()
        _open_engines.add(self)
        _close_open_engines_at_exit()

    @property
    def renderer(self) -> str:
        return open_device(self._device).renderer if self._images else ""

    def begin(self, slots: Sequence[int], scenes: Sequence[EngineScene], states: Sequence[np.ndarray]) -> None:
        with self._busy:
            for slot, scene in zip(slots, scenes, strict=True):
                self._occupy(slot, scene)
            self._for_each(slots, lambda index: self._player(slots[index]).begin(states[index]))

    def room_to_settle(self, slots: Sequence[int], scenes: Sequence[EngineScene]) -> Mapping[EngineScene, int]:
        return {}

    def settle(
        self, slots: Sequence[int], scenes: Sequence[EngineScene], states: Sequence[np.ndarray], actions: np.ndarray
    ) -> list[Any]:
        with self._busy:
            self.begin(slots, scenes, states)
            chunks = np.tile(actions, (len(slots), 1, 1))
            self._step(
                slots, chunks, np.full(len(slots), len(actions)), until_goal=False, draw=True, film=NOBODY, law=OSC_DELTA
            )
            return self.save(slots)

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
        return self._step(slots, actions, num_steps, until_goal=until_goal, draw=draw, film=film, law=self._law)

    def _step(
        self,
        slots: Sequence[int],
        actions: Any,
        num_steps: np.ndarray,
        *,
        until_goal: bool,
        draw: bool,
        film: Mapping[int, int],
        law: int,
    ) -> StepResult:
        with self._busy:
            if draw:
                self._prepare_to_draw()
            actions = np.asarray(on_host(actions), np.float64)
            played = np.zeros(len(slots), np.int32)
            reached = np.zeros(len(slots), bool)
            faults = [""] * len(slots)
            frames: list[list[Frame]] = [[] for _ in slots]
            films: dict[int, list[Frame]] = {slot: [] for slot in film}
            seconds_played = np.zeros(len(slots))

            def play(index: int) -> None:
                slot, began = slots[index], time.perf_counter()
                chunk, most = actions[index], int(num_steps[index])
                if slot in film:
                    outcome = self._film(slot, chunk, most, films[slot], every=film[slot], until_goal=until_goal, law=law)
                else:
                    outcome = self._play(slot, chunk, most, until_goal=until_goal, law=law)
                played[index], reached[index], faults[index] = outcome
                seconds_played[index] = time.perf_counter() - began
                if draw:
                    frames[index] = self._draw(slot)

            began = time.perf_counter()
            try:
                self._for_each(slots, play)
            finally:
                seconds_drawn = _wait_for([frame.done for drawn in (*frames, *films.values()) for frame in drawn])
            if any(frames):
                ended, share = time.perf_counter(), seconds_drawn / (seconds_drawn + seconds_played.sum())
                self.render_span = ended - share * (ended - began), ended
            shown = {slot: np.array([*(frame.pixels for frame in film), self._drawn[0][slot]]) for slot, film in films.items()}
            return StepResult(num_steps=played, goal_reached=reached, faults=tuple(faults), frames=shown)

    def draw(self, slots: Sequence[int]) -> None:
        with self._busy:
            self._prepare_to_draw()
            asked = time.perf_counter()
            _wait_for([frame.done for slot in slots for frame in self._draw(slot)])
            self.render_span = asked, time.perf_counter()

    def pictures(self) -> dict[str, np.ndarray]:
        with self._busy:
            return {name: images.copy() for name, images in self._images.items()}

    def depths(self) -> dict[str, np.ndarray]:
        with self._busy:
            return {name: depths.copy() for name, depths in self._depths.items()}

    def segmentations(self) -> dict[str, np.ndarray]:
        with self._busy:
            return {name: bodies.copy() for name, bodies in self._segmentations.items()}

    def camera_poses(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        with self._busy:
            poses = [self._camera_pose(slot, self._cameras[camera]) for slot in range(self.num_slots)]
        return np.array([position for position, _ in poses]), np.array([rotation for _, rotation in poses])

    def _camera_pose(self, slot: int, camera: DrawnCamera) -> tuple[np.ndarray, np.ndarray]:
        look = self._looks[slot]
        if camera.own is not None:
            own = camera.own if look is None else look.of(camera.own)
            return np.asarray(own.position, np.float64), own.rotation
        player, scene = self._player(slot), self._scenes[slot]
        assert scene is not None
        poses = player.view.poses if look is None else look.poses(player.view.poses, scene.model)
        return camera_pose(poses, scene.model, scene.camera_id(camera.name))

    def proprioception(self, slots: Sequence[int]) -> np.ndarray:
        return np.array([self._player(slot).view.proprioception for slot in slots]).reshape(-1, PROPRIOCEPTION_DIM)

    def robot_state(self, slots: Sequence[int]) -> np.ndarray:
        return np.array([self._player(slot).view.robot_state for slot in slots]).reshape(-1, ROBOT_STATE_DIM)

    def save(self, slots: Sequence[int]) -> list[Any]:
        with self._busy:
            pictures = [tuple(drawn[slot].copy() for drawn in self._drawn) for slot in slots]
            return [(self._player(slot).save(), drawn) for slot, drawn in zip(slots, pictures, strict=True)]

    def restore(self, slots: Sequence[int], scenes: Sequence[EngineScene], saved: Sequence[Any]) -> None:
        with self._busy:
            for slot, scene, (player, pictures) in zip(slots, scenes, saved, strict=True):
                self._occupy(slot, scene)
                self._player(slot).restore(player)
                for mine, theirs in zip(self._drawn, pictures, strict=True):
                    mine[slot] = theirs

    def dress(self, looks: Mapping[int, Look]) -> None:
        with self._busy:
            for slot, look in looks.items():
                self._looks[slot] = look
            self.draw(list(looks))

    def get_state(self, slot: int) -> np.ndarray:
        return self._player(slot).get_state()

    def set_state(self, slot: int, state: np.ndarray) -> None:
        with self._busy:
            self._player(slot).set_state(state)

    def close(self) -> None:
        with self._busy:
            if self._closed:
                return
            self._closed = True
            _open_engines.discard(self)
            self._workers.shutdown()
            if self._renderers is not None:
                self._renderers.release()
            self._players = [None] * self.num_slots
            self._scenes = [None] * self.num_slots

    def _check_open(self) -> None:
        if self._closed:
            _end_with_process(NotResetError("this engine is closed: make a new one"))

    def _player(self, slot: int) -> Player:
        self._check_open()
        player = self._players[slot]
        assert player is not None, f"slot {slot} was never given a scene"
        return player

    def _occupy(self, slot: int, scene: EngineScene) -> None:
        """Give the slot a player of this scene. A player of another scene is dropped: it would keep that scene in memory."""
        self._check_open()
        self._looks[slot] = None
        if self._scenes[slot] is not scene:
            self._players[slot] = scene.new_player()
            self._scenes[slot] = scene

    def _play(self, slot: int, actions: np.ndarray, num_steps: int, *, until_goal: bool, law: int) -> tuple[int, bool, str]:
        """Returns the control steps played, whether the goal holds after them, and why the physics gave up."""
        player, scene = self._player(slot), self._scenes[slot]
        assert scene is not None
        if until_goal and num_steps > 1:
            player.mark()
        completed = player.play(actions, num_steps, law)
        holding = np.flatnonzero(scene.judge(player.record, completed)) if until_goal else np.zeros(0)
        if holding.size == 0:
            fault = player.fault() if completed < num_steps else ""
            return min(completed + 1, num_steps), False, fault
        first = int(holding[0]) + 1
        if first < num_steps:
            player.rewind()
            player.play(actions, first, law)
        return first, True, ""

    def _film(
        self, slot: int, actions: np.ndarray, num_steps: int, film: list[Frame], *, every: int, until_goal: bool, law: int
    ) -> tuple[int, bool, str]:
        """As `_play`, piece by piece; asks for a picture between any two of them, and adds it to `film`."""
        played, reached, fault = 0, False, ""
        while True:
            piece = min(every, num_steps - played)
            count, reached, fault = self._play(slot, actions[played : played + piece], piece, until_goal=until_goal, law=law)
            played += count
            if played >= num_steps or reached or fault:
                return played, reached, fault
            first, view = next(iter(self._cameras)), self._player(slot).view
            frame = self._frame(slot, first, View(*(array.copy() for array in view)), np.empty_like(self._images[first][slot]))
            film.append(frame)
            assert self._renderers is not None
            self._renderers.draw([frame])

    def _prepare_to_draw(self) -> None:
        self._check_open()
        if self._images and self._renderers is None:
            self._renderers = RenderPool.acquire(self._device)

    def _draw(self, slot: int) -> list[Frame]:
        """Ask for the slot's pictures; where the physics gave up, they show the last state before that."""
        view = self._player(slot).view
        frames = [
            self._frame(
                slot,
                name,
                view,
                self._images[name][slot],
                depth=self._depths[name][slot] if camera.depth else None,
                segmentation=self._segmentations[name][slot] if camera.segmentation else None,
            )
            for name, camera in self._cameras.items()
        ]
        if frames:
            assert self._renderers is not None
            self._renderers.draw(frames)
        return frames

    def _frame(self, slot: int, camera: str, view: View, pixels: np.ndarray, **surfaces: Any) -> Frame:
        scene, drawn = self._scenes[slot], self._cameras[camera]
        assert scene is not None
        look, source = self._looks[slot], drawn.own or scene.camera_id(camera)
        if look is not None:
            view = view._replace(poses=look.poses(view.poses, scene.model))
            source = look.of(source) if isinstance(source, Camera) else source
        return Frame(scene=scene.drawn_as, view=view, camera=source, pixels=pixels, look=look, **surfaces)

    def _for_each(self, slots: Sequence[int], work: Callable[[int], None]) -> None:
        """Do `work(index)` for each index of `slots`, in the pool; the first error is raised once all have ended.

        An interrupt is raised once none is under way: those that had not begun never do.
        """
        self._check_open()
        if len(slots) == 1:
            work(0)
            return
        ends: list[Future] = [Future() for _ in slots]  # our own: an interrupted `submit` may lose the pool's

        def run(index: int) -> None:
            if not ends[index].set_running_or_notify_cancel():
                return
            try:
                work(index)
            except BaseException as error:
                ends[index].set_exception(error)
            else:
                ends[index].set_result(None)

        try:
            for index in range(len(slots)):
                _submit(self._workers, run, index)
            wait(ends)
        except BaseException:
            wait([end for end in ends if not end.cancel()])  # it takes no longer than a chunk
            raise
        for end in ends:
            end.result()


def mujoco_engine(num_slots: int, options: EnvOptions) -> MujocoEngine:
    """The engine for an env's options: without cameras it needs nothing to draw with."""
    return MujocoEngine(
        num_slots,
        cameras=options.drawn_cameras,
        device=options.device,
        num_threads=options.num_threads,
        law=options.control_mode.law,
    )


@cache
def _close_open_engines_at_exit() -> None:
    """Close all engines at exit: their threads must end before the process unloads the libraries they run in."""

    def close_all() -> None:
        _process_ends.set()
        for engine in list(_open_engines):
            engine.close()

    atexit.register(close_all)


def _submit(workers: ThreadPoolExecutor, run: Callable[[int], None], index: int) -> None:
    try:
        workers.submit(run, index)
    except RuntimeError as error:
        if "interpreter shutdown" in str(error):  # before what is registered with atexit is called
            _process_ends.set()
        _end_with_process(error)


def _end_with_process(error: Exception) -> NoReturn:
    """Raise the error; but while the process ends, a daemon thread ends silently: Python may crash on what it prints."""
    if _process_ends.is_set() and threading.current_thread().daemon:
        raise SystemExit
    raise error


def _wait_for(futures: list[Future[float]]) -> float:
    """Wait until all have ended, even if interrupted meanwhile; then raise the first error, or add up their results."""
    try:
        wait(futures)
    except BaseException:
        wait(futures)  # players and arrays are in use until then
        raise
    return sum(future.result() for future in futures)
