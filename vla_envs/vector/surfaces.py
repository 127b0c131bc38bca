"""What is behind each pixel: how far away it is, and which body it belongs to.

Both come from one more pass over the scene, in which each geom has a colour of its own and pixels are not blended.
"""

import mujoco
import numpy as np

_GEOM, _SITE = int(mujoco.mjtObj.mjOBJ_GEOM), int(mujoco.mjtObj.mjOBJ_SITE)
_FLAGS = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]
NO_BODY = -1
"""Of pixels where there is nothing."""


class Surfaces:
    """Draws a scene that the visualiser has filled. Use it in the thread of the context.

    Args:
        model: What is drawn.
        drawn: The visualiser's list of geoms.
        context: Where it is drawn.
    """

    def __init__(self, model: mujoco.MjModel, drawn: mujoco.MjvScene, context: mujoco.MjrContext) -> None:
        self._drawn, self._context = drawn, context
        self._geoms = list(drawn.geoms)
        self._bodies = {_GEOM: model.geom_bodyid.copy(), _SITE: model.site_bodyid.copy()}
        self._near, self._far = clipping_planes(model)
        context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR

    def draw(self, viewport: mujoco.MjrRect, *, depth: np.ndarray | None, segmentation: np.ndarray | None) -> None:
        """Fill arrays that are given, mirrored as pictures are.

        Args:
            viewport: H x W.
            depth: (H, W, 1) float32: receives metres along the camera's axis; the far plane's distance where there is nothing.
            segmentation: (H, W, 1) int32: receives ids of bodies; `NO_BODY` where there is nothing.
        """
        flags = self._drawn.flags
        before = flags[_FLAGS]
        flags[_FLAGS] = 1
        mujoco.mjr_render(viewport, self._drawn, self._context)
        flags[_FLAGS] = before
        colours = np.empty((viewport.height, viewport.width, 3), np.uint8)
        buffer = np.empty((viewport.height, viewport.width), np.float32)
        mujoco.mjr_readPixels(colours, buffer, viewport, self._context)
        if depth is not None:
            depth[:, :, 0] = self._metres(buffer)[::-1, ::-1]
        if segmentation is not None:
            places = colours.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
            segmentation[:, :, 0] = self._body_of_colour()[places][::-1, ::-1]

    def _metres(self, buffer: np.ndarray) -> np.ndarray:
        """Undo OpenGL's projection, in which 1 is near and 0 is far, by the numbers that `mujoco.Renderer` takes."""
        near, far = self._near, self._far
        scale = np.float32(-0.5) * (-(far + near) / (far - near)) - np.float32(0.5)
        offset = np.float32(-0.5) * (-(np.float32(2) * far * near) / (far - near))
        return offset / (buffer.astype(np.float64) + scale)

    def _body_of_colour(self) -> np.ndarray:
        """(ngeom + 1,) int32: body by colour, 0 for none."""
        count = self._drawn.ngeom
        body_of_colour = np.full(count + 1, NO_BODY, np.int32)
        for geom in self._geoms[:count]:
            bodies = self._bodies.get(geom.objtype)
            if bodies is not None and geom.segid >= 0:
                body_of_colour[geom.segid + 1] = bodies[geom.objid]
        return body_of_colour


def clipping_planes(model: mujoco.MjModel) -> tuple[np.float32, np.float32]:
    """Distances of the near and the far plane in metres."""
    extent, planes = model.stat.extent, model.vis.map
    return np.float32(planes.znear * extent), np.float32(planes.zfar * extent)
