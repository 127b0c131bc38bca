"""What a geom looks like, as triangles with texture coordinates and a picture, however MuJoCo textures it.

Newton's renderer draws textures on meshes with coordinates only. So boxes, planes and cylinders become meshes, and what MuJoCo
does while drawing (cube textures, repeats, the colour that tints a texture) is worked into coordinates and pixels here.
"""

from dataclasses import dataclass

import mujoco
import numpy as np


def linear(shown: np.ndarray) -> np.ndarray:
    """Colours in linear space, from colours in sRGB, in [0, 1]."""
    return np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)


_SEGMENTS = 32
"""Of a circle."""
_ENDLESS = 50.0
"""Metres: half the width of a plane that MuJoCo draws without end."""
_LEAST_OPACITY = 0.5
"""What is more transparent than this is left out: the renderer draws everything opaque."""
_UNSET_RGBA = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
"""MuJoCo's default colour of a geom, which gives way to that of its material."""
_LINEAR_BYTES = (255.0 * linear(np.arange(256) / 255.0)).round().astype(np.uint8)
"""Bytes of a picture in sRGB -> the same in linear space."""
_CUBE_FACES = (
    (0, 1, np.array([0, 0, -1.0]), np.array([0, -1.0, 0])),
    (0, -1, np.array([0, 0, 1.0]), np.array([0, -1.0, 0])),
    (1, 1, np.array([1.0, 0, 0]), np.array([0, 0, 1.0])),
    (1, -1, np.array([1.0, 0, 0]), np.array([0, 0, -1.0])),
    (2, 1, np.array([1.0, 0, 0]), np.array([0, -1.0, 0])),
    (2, -1, np.array([-1.0, 0, 0]), np.array([0, -1.0, 0])),
)
"""Of a cube texture in OpenGL's order: axis, sign, and the directions in which its columns and rows run."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Triangles: V vertices, F faces."""

    points: np.ndarray
    """(V, 3) metres, in the geom's frame."""
    normals: np.ndarray
    """(V, 3)."""
    faces: np.ndarray
    """(F, 3) vertex ids, counter-clockwise from outside."""
    uvs: np.ndarray
    """(V, 2): 0, 0 is the picture's lower left corner; the picture repeats beyond 1."""
    rgba: tuple[float, float, float, float]
    """In [0, 1]; the colour of what has no picture."""
    texture: np.ndarray | None
    """(H, W, 3) uint8, tinted; None without one."""


def surface_of(model: mujoco.MjModel, geom: int) -> Surface | None:
    """How a geom looks; None if it is hardly seen, or a shape that is not drawn."""
    rgba = _rgba(model, geom)
    shape = _shape(model, geom)
    if rgba[3] < _LEAST_OPACITY or shape is None:
        return None
    corners, normals, own_uvs = shape
    material, texture = int(model.geom_matid[geom]), _texture_id(model, geom)
    image = None if texture < 0 else pixels_of(model, texture)
    uvs = np.zeros((*corners.shape[:2], 2))
    if image is not None and model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_2D:
        uvs = own_uvs if own_uvs is not None else _planar_uvs(model, geom, material, corners)
    elif image is not None:
        uvs = _cube_uvs(corners / _extent(model, geom, corners), stacked=image.shape[0] > image.shape[1])
    if image is not None and (rgba[:3] != 1.0).any():
        image = (image * np.clip(rgba[:3], 0.0, 1.0)).astype(np.uint8)
    uvs = np.stack([uvs[..., 0], 1.0 - uvs[..., 1]], axis=-1)
    table = np.concatenate([corners, normals, uvs], axis=-1).reshape(-1, 8).astype(np.float32)
    rows, index = np.unique(table, axis=0, return_inverse=True)
    return Surface(
        points=rows[:, :3],
        normals=rows[:, 3:6],
        faces=index.reshape(-1, 3).astype(np.int32),
        uvs=rows[:, 6:],
        rgba=tuple(float(channel) for channel in rgba),  # type: ignore[arg-type]
        texture=image,
    )


def mesh_of(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and faces (F, 3) of a mesh geom, in its frame."""
    mesh = int(model.geom_dataid[geom])
    vertex, face = int(model.mesh_vertadr[mesh]), int(model.mesh_faceadr[mesh])
    vertices = model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]]
    return vertices.copy(), model.mesh_face[face : face + model.mesh_facenum[mesh]].copy()


def pixels_of(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """(H, W, 3) uint8, the first row where MuJoCo's coordinate is 0."""
    height, width, channels = (int(of[texture]) for of in (model.tex_height, model.tex_width, model.tex_nchannel))
    first = int(model.tex_adr[texture])
    pixels = model.tex_data[first : first + height * width * channels].reshape(height, width, channels)
    pixels = pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    if model.tex_colorspace[texture] == mujoco.mjtColorSpace.mjCOLORSPACE_SRGB:
        pixels = _LINEAR_BYTES[pixels]  # OpenGL decodes it, and nothing encodes it again
    return np.ascontiguousarray(pixels)


def _rgba(model: mujoco.MjModel, geom: int) -> np.ndarray:
    own, material = model.geom_rgba[geom], int(model.geom_matid[geom])
    return model.mat_rgba[material] if material >= 0 and np.array_equal(own, _UNSET_RGBA) else own


def _texture_id(model: mujoco.MjModel, geom: int) -> int:
    material = int(model.geom_matid[geom])
    return -1 if material < 0 else int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB])


def _shape(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Corners (F, 3, 3) of triangles, normals there, and the mesh's own texture coordinates (F, 3, 2) if it has any."""
    size, kind = model.geom_size[geom], mujoco.mjtGeom(int(model.geom_type[geom]))
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        return _mesh_shape(model, geom)
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        corners = np.concatenate([_face(axis, sign) for axis in range(3) for sign in (-1, 1)]) * size
        return corners, _flat_normals(corners), None
    if kind == mujoco.mjtGeom.mjGEOM_PLANE:
        corners = _face(2, 1) * [size[0] or _ENDLESS, size[1] or _ENDLESS, 0.0]
        return corners, _flat_normals(corners), None
    angles = np.linspace(0.0, np.pi, _SEGMENTS // 2 + 1)
    circle = np.stack([np.sin(angles), -np.cos(angles)], axis=1)
    if kind in (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_ELLIPSOID):
        half = np.full(3, size[0]) if kind == mujoco.mjtGeom.mjGEOM_SPHERE else size
        corners, normals = _revolve(circle, circle)
        turned = normals / half
        return corners * half, turned / np.linalg.norm(turned, axis=-1, keepdims=True), None
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        away = np.where(circle[:, 1:] < 0, -size[1], size[1]) * [0.0, 1.0]
        return *_revolve(circle * size[0] + away, circle), None
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        profile = np.array([[0, -1], [1, -1], [1, -1], [1, 1], [1, 1], [0, 1]]) * size[:2]
        return *_revolve(profile, np.array([[0, -1], [0, -1], [1, 0], [1, 0], [0, 1], [0, 1.0]])), None
    return None


def _mesh_shape(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    mesh = int(model.geom_dataid[geom])
    vertices, faces = mesh_of(model, geom)
    rows = slice(int(model.mesh_faceadr[mesh]), int(model.mesh_faceadr[mesh]) + int(model.mesh_facenum[mesh]))
    normals = model.mesh_normal[int(model.mesh_normaladr[mesh]) + model.mesh_facenormal[rows]]
    first_uv = int(model.mesh_texcoordadr[mesh])
    uvs = None if first_uv < 0 else model.mesh_texcoord[first_uv + model.mesh_facetexcoord[rows]]
    return vertices[faces], normals, uvs


def _face(axis: int, sign: int) -> np.ndarray:
    """(2, 3, 3): the two triangles of a side of the cube from -1 to 1."""
    along = np.zeros((2, 3))
    along[0, (axis + 1) % 3], along[1, (axis + 2) % 3] = sign, 1.0
    middle = np.eye(3)[axis] * sign
    a, b, c, d = (middle + first * along[0] + second * along[1] for first, second in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    return np.array([[a, b, c], [a, c, d]])


def _revolve(profile: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles and normals of a profile (P, 2) of radius and height, with normals (P, 2), turned about z."""
    turns = np.linspace(0.0, 2.0 * np.pi, _SEGMENTS + 1)

    def turned(radial: np.ndarray) -> np.ndarray:
        return np.stack(
            [np.outer(radial[:, 0], np.cos(turns)), np.outer(radial[:, 0], np.sin(turns)), radial[:, 1:] + 0 * turns], axis=-1
        )

    def triangles(grid: np.ndarray) -> np.ndarray:
        a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
        return np.concatenate([np.stack([a, b, c], axis=2).reshape(-1, 3, 3), np.stack([a, c, d], axis=2).reshape(-1, 3, 3)])

    corners, normals = triangles(turned(profile)), triangles(turned(slopes))
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    solid = areas > 1e-9 * areas.max()
    return corners[solid], normals[solid]


def _flat_normals(corners: np.ndarray) -> np.ndarray:
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.repeat((normals / np.linalg.norm(normals, axis=1, keepdims=True))[:, None], 3, axis=1)


def _extent(model: mujoco.MjModel, geom: int, corners: np.ndarray) -> np.ndarray:
    """(3,) half the geom's size along its axes, nowhere zero: MuJoCo textures a unit shape, and scales it."""
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        return np.ones(3)
    return np.maximum(np.abs(corners).max(axis=(0, 1)), 1e-9)


def _planar_uvs(model: mujoco.MjModel, geom: int, material: int, corners: np.ndarray) -> np.ndarray:
    """A picture laid on the xy plane, repeated per geom or per metre."""
    extent = _extent(model, geom, corners)
    repeat = model.mat_texrepeat[material] * (extent[:2] if model.mat_texuniform[material] else 1.0)
    return 0.5 * repeat * corners[..., :2] / extent[:2] * [1.0, -1.0] - 0.5


def _cube_uvs(corners: np.ndarray, *, stacked: bool) -> np.ndarray:
    """Where a ray from the centre through each corner meets the cube's pictures.

    Args:
        corners: (F, 3, 3).
        stacked: Whether the picture holds six, one below the other; otherwise all sides show the same one.
    """
    middles = corners.mean(axis=1)
    axis = np.abs(middles).argmax(axis=1)
    positive = np.take_along_axis(middles, axis[:, None], axis=1)[:, 0] > 0
    uvs = np.zeros((*corners.shape[:2], 2))
    for index, (face_axis, sign, columns, rows) in enumerate(_CUBE_FACES):
        mine = (axis == face_axis) & (positive == (sign > 0))
        depth = np.maximum(np.abs(corners[mine][..., face_axis]), 1e-9)
        across = np.clip((corners[mine] @ columns / depth + 1.0) / 2.0, 0.0, 1.0)
        down = np.clip((corners[mine] @ rows / depth + 1.0) / 2.0, 0.0, 1.0)
        uvs[mine, :, 0] = across
        uvs[mine, :, 1] = (index + down) / 6.0 if stacked else down
    return uvs
