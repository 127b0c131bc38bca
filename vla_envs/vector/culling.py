"""Leaves out of a picture what its camera cannot see, before OpenGL looks at each of its triangles.

Invariant: pictures stay the same, bit for bit. A geom is left out if its bounding box is outside of the camera's pyramid. Where
a light casts shadows or a mirror is in view, things outside may show all the same, and nothing is left out.
"""

import mujoco
import numpy as np

_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_PLANE, _BOX = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)
_MESH, _NOTHING = int(mujoco.mjtGeom.mjGEOM_MESH), int(mujoco.mjtGeom.mjGEOM_NONE)
_MARGIN_M = 1e-3


class Culling:
    """What a camera cannot see of one model.

    Args:
        model: What is drawn.
        drawn: The list of geoms that the visualiser fills for every picture.
    """

    def __init__(self, model: mujoco.MjModel, drawn: mujoco.MjvScene) -> None:
        self._drawn = drawn
        self._geoms = list(drawn.geoms)
        self._centres = model.geom_aabb[:, :3, None].copy()
        self._half_sizes = model.geom_aabb[:, None, 3:].copy()
        self._casts_shadows = bool(model.light_castshadow.any())

    def leave_out(self, data: mujoco.MjData, aspect: float) -> None:
        """Take what is out of view off the list, as it was filled last.

        Args:
            data: Poses of the model's geoms.
            aspect: Width of the picture over its height.
        """
        if self._casts_shadows or self._drawn.camera[0].orthographic:
            return
        solids, mirrors = [], []
        for geom in self._geoms[: self._drawn.ngeom]:
            kind = geom.type
            reflects = geom.reflectance > 0 and kind in (_PLANE, _BOX)  # MuJoCo lets nothing else reflect
            if reflects and kind == _PLANE:
                return
            if kind in (_BOX, _MESH) and geom.objtype == _GEOM:
                solids.append(geom)
                mirrors.append(reflects)
        outside = self._outside(data, np.array([geom.objid for geom in solids], int), aspect)
        if (np.array(mirrors, bool) & ~outside).any():
            return
        for index in np.flatnonzero(outside):
            solids[index].type = _NOTHING

    def _outside(self, data: mujoco.MjData, ids: np.ndarray, aspect: float) -> np.ndarray:
        """(n,) bool: which of n geoms have their bounding boxes wholly outside of one of the pyramid's sides."""
        normals, eye = self._sides(aspect)
        rotations = data.geom_xmat[ids].reshape(-1, 3, 3)
        centres = data.geom_xpos[ids] + (rotations @ self._centres[ids])[:, :, 0] - eye
        reach = (np.abs(normals @ rotations) * self._half_sizes[ids]).sum(axis=2)
        return (centres @ normals.T > reach + _MARGIN_M).any(axis=1)

    def _sides(self, aspect: float) -> tuple[np.ndarray, np.ndarray]:
        """Outward normals (4, 3) of the planes that hold the picture's edges and the eye, and the eye (3,)."""
        left_eye, right_eye = self._drawn.camera
        forward, up = np.array(left_eye.forward, float), np.array(left_eye.up, float)
        right = np.cross(forward, up)
        top, bottom = left_eye.frustum_top, left_eye.frustum_bottom
        centre, half_width = (left_eye.frustum_center + right_eye.frustum_center) / 2, aspect * (top - bottom) / 2
        edges = np.array([[centre + half_width], [half_width - centre], [top], [-bottom]]) / left_eye.frustum_near
        normals = np.stack([right, -right, up, -up]) - edges * forward
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        return normals / lengths, (np.array(left_eye.pos, float) + right_eye.pos) / 2
