"""Intrinsics and extrinsics of an env's cameras, and names of what they tell apart: how to get from pixels to the world.

Invariant: they are of the instant and of the orientation of the pictures that were observed last.

Frames: MuJoCo's camera looks along its own -z, y upwards; the frame of `camera_extrinsics` along +z, y downwards, as OpenCV's.
"""

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from vla_envs.vector.cameras import LIBERO_NAMES, DrawnCamera
from vla_envs.vector.engine import Engine, EngineScene
from vla_envs.vector.options import check_choice, check_integer
from vla_envs.vector.start import Start


class Calibration:
    """What a vector env with an engine says of its cameras."""

    num_envs: int
    _cameras: Mapping[str, DrawnCamera]
    _engine: Engine
    _starts: Sequence[Start | None]
    _busy: threading.RLock

    @abstractmethod
    def _check_ready(self, call: str) -> None:
        """Raise `NotResetError` if the env is closed or a slot was never reset."""

    def camera_intrinsics(self, camera: str) -> np.ndarray:
        """(N, 3, 3) float64: how a camera's picture comes from points in its own frame, that of `camera_extrinsics`.

        A point (x, y, z) in m is at column u and row v of the observed picture, in pixels, where z (u, v, 1) = K (x, y, z).
        Pixel (i, j) is the square from row i to i + 1 and column j to j + 1. K[0, 0] is negative, as observed pictures are
        mirrored; in those of `render`, the column is the width less u.

        Args:
            camera: One of the env's.

        Raises:
            ValueError: The env has no such camera.
            NotResetError: A slot was never reset, or the env is closed.
        """
        with self._busy:
            drawn, scenes = self._drawn(camera), self._scenes_now("camera_intrinsics")
            return np.array([_intrinsics(drawn, scene) for scene in scenes])

    def camera_extrinsics(self, camera: str) -> np.ndarray:
        """(N, 4, 4) float64: where a camera was when each slot's picture was drawn, as robosuite's function of that name.

        It takes points from the camera's frame (x to the right and y downwards as the camera itself sees, z ahead, in m) to the
        world's; its inverse takes them back.

        Args:
            camera: One of the env's.

        Raises:
            ValueError: The env has no such camera.
            NotResetError: A slot was never reset, or the env is closed.
        """
        with self._busy:
            drawn, scenes = self._drawn(camera), self._scenes_now("camera_extrinsics")
            matrices = np.tile(np.eye(4), (len(scenes), 1, 1))
            positions, rotations = self._engine.camera_poses(drawn.name)
            matrices[:, :3, :3] = rotations * [1.0, -1.0, -1.0]
            matrices[:, :3, 3] = positions
            return matrices

    def body_names(self, slot: int = 0) -> tuple[str, ...]:
        """Names of the bodies of the slot's scene, by the ids that segmentations hold.

        Raises:
            ValueError: There is no such slot.
            NotResetError: A slot was never reset, or the env is closed.
        """
        check_integer("slot", slot, least=0)
        if slot >= self.num_envs:
            raise ValueError(f"slot must be in 0..{self.num_envs - 1}, got {slot}")
        with self._busy:
            model = self._scenes_now("body_names")[slot].model
            return tuple(model.body(body).name for body in range(model.nbody))

    def _drawn(self, camera: str) -> DrawnCamera:
        name = LIBERO_NAMES.get(camera, camera)
        check_choice("camera", name, tuple(self._cameras))
        return self._cameras[name]

    def _scenes_now(self, call: str) -> list[EngineScene]:
        """What each slot plays."""
        self._check_ready(call)
        return [start.scene for start in self._starts if start is not None]


def _intrinsics(camera: DrawnCamera, scene: EngineScene) -> np.ndarray:
    fovy_deg = camera.own.fovy_deg if camera.own else scene.model.cam_fovy[scene.camera_id(camera.name)]
    focal = camera.height / 2 / np.tan(np.radians(fovy_deg) / 2)
    return np.array([[-focal, 0, camera.width / 2], [0, focal, camera.height / 2], [0, 0, 1]])
