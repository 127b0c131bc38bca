"""`detail="fast"`: the same scene with fewer triangles and smaller textures, for cameras of about 256 pixels.

Only what is drawn changes. Meshes that anything collides with stay as they are, and so do masses and inertias
(`compile.compile_scene` copies them), so that both details play the same physics.
"""

import ctypes
import math

import mujoco
import numpy as np

MAX_TRIANGLES = 1000
"""Triangles that a drawn mesh keeps; more where its surface would otherwise move by more than `_MAX_ERROR`."""
MAX_TEXTURE = 512
"""Most pixels along a side of a texture."""
_MAX_ERROR = 0.01
"""Largest error of a simplified surface, as a share of the mesh's size: a woven basket keeps more triangles than a tin."""
_TEXTURE_WEIGHT = 0.5
"""Weight of errors in texture coordinates when edges are collapsed; errors in position, by the mesh's size, have weight 1."""
_CREASE_COSINE = 0.7
"""Faces that meet at more than about 45 degrees keep a visible edge."""


def simplify(spec: mujoco.MjSpec) -> None:
    """Simplify a scene before it is compiled, in place."""
    model = spec.copy().compile()
    collides = {
        int(model.geom_dataid[geom]) for geom in range(model.ngeom) if model.geom_contype[geom] | model.geom_conaffinity[geom]
    }
    for mesh in spec.meshes:
        mesh_id = model.mesh(mesh.name).id
        if mesh_id not in collides and model.mesh_facenum[mesh_id] > MAX_TRIANGLES:
            _simplify_mesh(mesh, model, mesh_id)
    for texture in spec.textures:
        if texture.file:
            _resize_texture(texture, model, model.tex(texture.name).id)


def _simplify_mesh(mesh: "mujoco._specs.MjsMesh", model: mujoco.MjModel, mesh_id: int) -> None:
    """Put a coarser surface in place of the mesh's file, in the file's own frame and scale."""
    positions, uvs, triangles = _welded(model, mesh_id)
    if len(triangles) > MAX_TRIANGLES:
        triangles = _collapsed(positions, uvs, triangles)
    normals = corner_normals(positions, triangles)
    corners = np.concatenate([triangles.reshape(-1, 1), np.round(normals, 3)], axis=1)
    _, first, faces = np.unique(corners, axis=0, return_index=True, return_inverse=True)  # one vertex per position and normal
    faces = faces.reshape(-1).astype(np.int32)
    vertices = triangles.reshape(-1)[first]
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, model.mesh_quat[mesh_id])
    rotation = matrix.reshape(3, 3)
    mesh.file = ""
    mesh.scale = [1, 1, 1]
    mesh.refpos, mesh.refquat = [0, 0, 0], [1, 0, 0, 0]
    mesh.uservert = (positions[vertices] @ rotation.T + model.mesh_pos[mesh_id]).reshape(-1)
    mesh.usernormal = (normals[first] @ rotation.T).reshape(-1)
    mesh.userface = mesh.userfacenormal = faces
    if uvs.shape[1]:
        mesh.usertexcoord = uvs[vertices].reshape(-1)
        mesh.userfacetexcoord = faces


def _welded(model: mujoco.MjModel, mesh_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A compiled mesh as an indexed surface: corners of equal position and texture coordinate become one vertex.

    Returns:
        positions (V, 3) in the compiled mesh's frame; uvs (V, 2), or (V, 0) without texture; triangles (F, 3).
    """

    def rows(values: np.ndarray, address: np.ndarray, number: np.ndarray) -> np.ndarray:
        return values[address[mesh_id] : address[mesh_id] + number[mesh_id]]

    def corners(of_face: np.ndarray) -> np.ndarray:
        return rows(of_face, model.mesh_faceadr, model.mesh_facenum).reshape(-1)

    vertices = rows(model.mesh_vert, model.mesh_vertadr, model.mesh_vertnum)[corners(model.mesh_face)]
    uvs = np.zeros((len(vertices), 0), np.float32)
    if model.mesh_texcoordadr[mesh_id] >= 0:
        uvs = rows(model.mesh_texcoord, model.mesh_texcoordadr, model.mesh_texcoordnum)[corners(model.mesh_facetexcoord)]
    key = np.concatenate([vertices, uvs], axis=1)
    _, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    triangles = index.reshape(-1, 3)
    real = (triangles[:, 0] != triangles[:, 1]) & (triangles[:, 1] != triangles[:, 2]) & (triangles[:, 2] != triangles[:, 0])
    return vertices[first].astype(np.float64), uvs[first], triangles[real]


def _collapsed(positions: np.ndarray, uvs: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(F', 3): fewer triangles over the same vertices; seams in the texture stay seams."""
    import meshoptimizer

    size_t = ctypes.c_size_t  # the binding declares no argument types for this function
    attributes = uvs.astype(np.float32) if uvs.shape[1] else np.zeros((len(positions), 1), np.float32)
    kept = np.zeros(triangles.size, np.uint32)
    count = meshoptimizer.simplify_with_attributes(
        kept,
        triangles.reshape(-1).astype(np.uint32),
        (positions / np.ptp(positions, axis=0).max()).astype(np.float32),
        attributes,
        np.full(attributes.shape[1], _TEXTURE_WEIGHT, np.float32),
        index_count=size_t(triangles.size),
        vertex_count=size_t(len(positions)),
        vertex_positions_stride=size_t(12),
        vertex_attributes_stride=size_t(4 * attributes.shape[1]),
        attribute_count=size_t(attributes.shape[1]),
        target_index_count=size_t(3 * MAX_TRIANGLES),
        target_error=ctypes.c_float(_MAX_ERROR),
    )
    return kept[:count].reshape(-1, 3)


def corner_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(3 F, 3) unit normals, one per corner: the area-weighted mean over the faces around it that bend less than a crease."""
    corner_positions = vertices[faces]
    areas = np.cross(corner_positions[:, 1] - corner_positions[:, 0], corner_positions[:, 2] - corner_positions[:, 0])
    units = areas / np.maximum(np.linalg.norm(areas, axis=1, keepdims=True), 1e-30)
    _, place = np.unique(np.round(vertices, 6), axis=0, return_inverse=True)  # across texture seams, too
    corner_place = place.reshape(-1)[faces].reshape(-1)
    corner_face = np.repeat(np.arange(len(faces)), 3)
    order = np.argsort(corner_place, kind="stable")
    _, start, size = np.unique(corner_place[order], return_index=True, return_counts=True)
    group = np.repeat(np.arange(len(start)), size)
    mine = np.repeat(np.arange(len(order)), size[group])  # every pair of corners in one place
    within = np.arange(len(mine)) - np.repeat(np.cumsum(size[group]) - size[group], size[group])
    other = start[group][mine] + within
    mine_face, other_face = corner_face[order[mine]], corner_face[order[other]]
    smooth = np.einsum("ij,ij->i", units[mine_face], units[other_face]) > _CREASE_COSINE
    normals = np.zeros((len(order), 3))
    np.add.at(normals, order[mine[smooth]], areas[other_face[smooth]])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 1e-30, normals / np.maximum(length, 1e-30), units[corner_face])


def _resize_texture(texture: "mujoco._specs.MjsTexture", model: mujoco.MjModel, texture_id: int) -> None:
    """Put a picture with powers of two as sides, of `MAX_TEXTURE` or less, in place of the texture's file.

    Of other sizes, OpenGL drivers make different half-size copies (mipmaps). Mesa's of odd sizes
    count some rows twice and skip the rows beside them: in libero_object the gaps between the floor's planks are about 50
    levels of 255 brighter than on a GPU, or in a true mean.
    """
    from PIL import Image

    width, height = int(model.tex_width[texture_id]), int(model.tex_height[texture_id])
    if height == 6 * width:  # six faces in a column are small enough
        return
    size = _power_of_two(width), _power_of_two(height)
    if size == (width, height):
        return
    channels = int(model.tex_nchannel[texture_id])
    start = int(model.tex_adr[texture_id])
    pixels = model.tex_data[start : start + width * height * channels].reshape(height, width, channels)
    shrinks = max(size) < max(width, height)  # then a mean; enlarged by it, single rows would be doubled
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(pixels.squeeze()).resize(size, how))
    texture.file = ""
    texture.width, texture.height = size
    texture.nchannel = channels
    texture.colorspace = mujoco.mjtColorSpace(int(model.tex_colorspace[texture_id]))  # it was read from the file
    texture.data = resized.tobytes()


def _power_of_two(length: int) -> int:
    """The power of two that is nearest by ratio, at most `MAX_TEXTURE`."""
    return min(MAX_TEXTURE, 2 ** round(math.log2(length)))
