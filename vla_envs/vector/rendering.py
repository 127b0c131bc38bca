"""GL threads that draw what slots show, each frame once, straight into the observation array.

    engine --frame--> pending frames --> GL thread (own context; an MjrContext per scene it holds) --> pixels in place, Future

A GPU has one thread. In software there is one per core, because a context computes its vertices serially. A thread prefers
frames of scenes that it holds, then of scenes that nobody holds. It copies a scene that others hold only while they are all
busy and memory allows. To make room for a new scene it frees those not used for longest. So every frame gets drawn.

Invariants: all envs of a process that draw on the same device share one pool, and the last one to leave closes it. A scene is
held while memory allows, and no longer than some env uses it.
"""

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias
from weakref import ref

import mujoco
import numpy as np

from vla_envs.vector.allowance import allowed_cores, free_memory_bytes
from vla_envs.vector.cameras import Camera
from vla_envs.vector.culling import Culling
from vla_envs.vector.engine import EngineScene
from vla_envs.vector.gl_context import Device, GLDevice, open_device
from vla_envs.vector.look import Look
from vla_envs.vector.slot import View, show_poses
from vla_envs.vector.surfaces import Surfaces, clipping_planes

_MAX_VISIBLE_GEOMS = 1000  # as robosuite's renderer
_GPU_MEMORY_BYTES = 8 << 30
_MIN_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One picture to draw. `view` and the arrays must not be touched by others until `done`."""

    scene: EngineScene
    view: View
    camera: int | Camera
    """Id of a camera of the model, or one of one's own."""
    look: Look | None = None
    """Materials and light other than the model's; `view` and `camera` have what else belongs to it."""
    pixels: np.ndarray
    """(H, W, 3) uint8: receives the picture, upright and mirrored left to right as in the published LIBERO sets."""
    depth: np.ndarray | None = None
    """(H, W, 1) float32, receives distances as `Surfaces.draw` gives them; None: not wanted."""
    segmentation: np.ndarray | None = None
    """(H, W, 1) int32, the same of bodies."""
    done: Future[float] = field(default_factory=Future)
    """Ends with the seconds that drawing took."""


_SceneRef: TypeAlias = ref[EngineScene]
_Held: TypeAlias = "OrderedDict[_SceneRef, _SceneRenderer]"
"""What one thread holds, the least recently used first."""


class RenderPool:
    """The GL threads of one device. Use `acquire` and `release`, not the constructor."""

    _pools: ClassVar[dict[GLDevice, "RenderPool"]] = {}
    _pools_lock = threading.Lock()

    def __init__(self, device: GLDevice) -> None:
        self.renderer = device.renderer
        self._device = device
        self._users = 0
        self._pending: OrderedDict[int, Frame] = OrderedDict()
        self._holders: dict[_SceneRef, set[int]] = {}
        """Scene -> threads that hold it, or are about to."""
        self._drawing: set[int] = set()
        """Threads that are busy."""
        self._memory_bytes = 0
        self._memory_limit = _GPU_MEMORY_BYTES if device.is_gpu else max(_MIN_MEMORY_BYTES, free_memory_bytes() // 2)
        self._closing = False
        self._changed = threading.Condition()
        num_threads = 1 if device.is_gpu else allowed_cores()
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"vla_envs-gl-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def acquire(cls, device: Device) -> "RenderPool":
        """The process's pool for this device; give it back with `release`."""
        gl_device = open_device(device)  # first: a forked process is refused before it waits for a lock of its parent's threads
        with cls._pools_lock:
            pool = cls._pools.get(gl_device)
            if pool is None:
                pool = cls._pools[gl_device] = cls(gl_device)
            pool._users += 1
            return pool

    def release(self) -> None:
        """Leave the pool; the last to leave frees its contexts and ends its threads."""
        with self._pools_lock:
            self._users -= 1
            if self._users > 0:
                return
            del self._pools[self._device]
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def draw(self, frames: list[Frame]) -> None:
        """Queue frames; each one's `done` tells when its pixels are there, or why they are not."""
        with self._changed:
            for frame in frames:
                self._pending[id(frame)] = frame
            self._changed.notify_all()

    @property
    def num_held(self) -> int:
        """How many scenes are held now, copies counted."""
        with self._changed:
            return sum(len(threads) for threads in self._holders.values())

    def _serve(self, thread: int) -> None:
        """A GL thread. Takes: pending frames. Gives: pixels, and the result or error of every frame it took."""
        held: _Held = OrderedDict()
        context = None
        try:
            while (frame := self._take(thread, held)) is not None:
                scene = ref(frame.scene)
                try:
                    context = context or self._device.of_thread(thread).make_context()
                    began = time.perf_counter()
                    if scene not in held:
                        held[scene] = _SceneRenderer(frame.scene, on_gpu=self._device.is_gpu)
                    held.move_to_end(scene)
                    held[scene].draw(frame)
                except BaseException as error:  # the frame's owner gets it; this thread serves the others
                    if scene not in held:
                        self._give_up(thread, scene, _context_bytes(frame.scene))
                    frame.done.set_exception(error)
                else:
                    frame.done.set_result(time.perf_counter() - began)
                del frame
        finally:
            for renderer in held.values():
                renderer.free()
            held.clear()
            if context is not None:
                context.free()

    def _take(self, thread: int, held: _Held) -> Frame | None:
        """Wait for a frame that this thread should draw; None when the pool closes."""
        with self._changed:
            self._drawing.discard(thread)
            while True:
                for scene in [scene for scene in held if scene() is None]:
                    self._drop(thread, scene, held)
                if self._closing:
                    return None
                frame = self._choose(thread)
                if frame is not None:
                    break
                self._changed.wait()
            del self._pending[id(frame)]
            self._drawing.add(thread)
            scene = ref(frame.scene)
            if scene not in held:
                needed = _context_bytes(frame.scene)
                while held and self._memory_bytes + needed > self._memory_limit:
                    self._drop(thread, next(iter(held)), held)
                self._memory_bytes += needed
                self._holders.setdefault(scene, set()).add(thread)
            if self._pending:
                self._changed.notify_all()  # others may copy its scenes, now that this thread is busy
            return frame

    def _choose(self, thread: int) -> Frame | None:
        unclaimed = copyable = None
        for frame in self._pending.values():
            holders = self._holders.get(ref(frame.scene), set())
            if thread in holders:
                return frame
            if not holders:
                unclaimed = unclaimed or frame
            elif holders <= self._drawing and self._memory_bytes + _context_bytes(frame.scene) <= self._memory_limit:
                copyable = copyable or frame
        return unclaimed or copyable

    def _drop(self, thread: int, scene: _SceneRef, held: _Held) -> None:
        """Free what this thread holds of a scene."""
        renderer = held.pop(scene)
        renderer.free()
        self._give_up(thread, scene, renderer.num_bytes)

    def _give_up(self, thread: int, scene: _SceneRef, num_bytes: int) -> None:
        """Record that this thread no longer holds a scene."""
        with self._changed:
            self._memory_bytes -= num_bytes
            self._holders[scene].remove(thread)
            if not self._holders[scene]:
                del self._holders[scene]


class _SceneRenderer:
    """What one GL thread keeps of one scene: uploaded meshes and textures, and room for what is drawn.

    It does not keep the scene itself alive. A GPU draws what is out of view faster than it is found.
    """

    def __init__(self, scene: EngineScene, *, on_gpu: bool) -> None:
        self.num_bytes = _context_bytes(scene)
        self._data = mujoco.MjData(scene.model)
        self._context = mujoco.MjrContext(scene.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._drawn = mujoco.MjvScene(scene.model, maxgeom=_MAX_VISIBLE_GEOMS)
        self._culling = None if on_gpu else Culling(scene.model, self._drawn)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._camera = mujoco.MjvCamera()
        self._surfaces: Surfaces | None = None
        """None until they are first asked for."""
        self._no_perturbation = mujoco.MjvPerturb()

    def draw(self, frame: Frame) -> None:
        height, width, _ = frame.pixels.shape
        if width > self._context.offWidth or height > self._context.offHeight:
            mujoco.mjr_resizeOffscreen(width, height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # the last one drawn may be another scene's
        show_poses(frame.view.poses, self._data)
        self._look_from(frame)
        with frame.scene.switch_lock, nullcontext() if frame.look is None else frame.look.worn_by(frame.scene.model):
            frame.scene.show_switches(frame.view.switches_on)
            mujoco.mjv_updateScene(
                frame.scene.model,
                self._data,
                self._options,
                self._no_perturbation,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._drawn,
            )
        if self._culling is not None:
            self._culling.leave_out(self._data, width / height)
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._drawn, self._context)
        bottom_up = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(bottom_up, None, viewport, self._context)
        frame.pixels[:] = bottom_up[::-1, ::-1]
        if frame.depth is not None or frame.segmentation is not None:
            if self._surfaces is None:
                self._surfaces = Surfaces(frame.scene.model, self._drawn, self._context)
            self._surfaces.draw(viewport, depth=frame.depth, segmentation=frame.segmentation)

    def _look_from(self, frame: Frame) -> None:
        """Choose the camera. The visualiser leaves one of one's own as it is set here."""
        if not isinstance(frame.camera, Camera):
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._camera.fixedcamid = frame.camera
            return
        self._camera.type = mujoco.mjtCamera.mjCAMERA_USER
        rotation = frame.camera.rotation
        near, far = clipping_planes(frame.scene.model)
        half_height = near * np.tan(np.radians(frame.camera.fovy_deg) / 2)
        aside = frame.scene.model.vis.global_.ipd / 2 * rotation[:, 0]
        for eye, side in zip(self._drawn.camera, (-aside, aside), strict=True):  # the picture is taken between the two
            eye.pos, eye.forward, eye.up = frame.camera.position + side, -rotation[:, 2], rotation[:, 1]
            eye.frustum_near, eye.frustum_far = near, far
            eye.frustum_top, eye.frustum_bottom = half_height, -half_height
            eye.frustum_center = eye.frustum_width = 0.0  # the picture's shape gives the width
            eye.orthographic = 0

    def free(self) -> None:
        self._context.free()


def _context_bytes(scene: EngineScene) -> int:
    """About what an MjrContext takes in software, as measured: textures with mipmaps, meshes and their hulls, buffers."""
    model, quality, sizes = scene.model, scene.model.vis.quality, scene.model.vis.global_
    texels = int((model.tex_width.astype(np.int64) * model.tex_height).sum())
    buffers = 4 * quality.shadowsize**2 + 8 * (quality.offsamples + 1) * sizes.offwidth * sizes.offheight
    return 6 * texels + 270 * model.nmeshface + int(buffers) + (32 << 20)
