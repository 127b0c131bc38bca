"""Pictures of all worlds at once, by MuJoCo Warp's ray caster.

OpenGL colours a point by clamp(ambient + diffuse + specular light) x texture. The ray caster adds specular light after the
texture, and clamps last: where light adds up to more than 1, its surfaces are too bright. So quality "match" casts two pictures
with four rays per pixel, the light on white surfaces and the textures in full light, and multiplies them; "fast" casts one
picture with one ray per pixel, of a dimmed scene where there is too much light. Distances and bodies are those that the first
ray of a pixel meets.

What OpenGL draws and a ray caster does not: sites (the glow of a stove that is on) and mirror images in shiny boxes.
"""

import copy
from collections.abc import Sequence

import mujoco
import mujoco_warp
import numpy as np
import warp as wp

from vla_envs.vector.cameras import DrawnCamera
from vla_envs.vector.surfaces import NO_BODY, clipping_planes
from vla_envs.warp.device import Replayed
from vla_envs.warp.worlds import Worlds

wp.set_module_options({"enable_backward": False})

_VISUAL_GROUP = 1
"""Geoms that LIBERO shows; group 0 holds collision shapes."""
_RAYS_PER_SIDE = {"fast": 1, "match": 2}
"""Of a pixel, by quality."""
_SRGB = int(mujoco.mjtColorSpace.mjCOLORSPACE_SRGB)


class Cameras:
    """Draws some cameras of some worlds.

    Args:
        worlds: What is drawn, as it was seen last.
        cameras: What is drawn, with their ids.
        quality: "fast" or "match".
    """

    def __init__(self, worlds: Worlds, cameras: Sequence[tuple[DrawnCamera, int]], *, quality: str) -> None:
        self._worlds = worlds
        model = worlds.host_model
        ordered = sorted(cameras, key=lambda one: one[1])
        drawn = [camera_id for _, camera_id in ordered]
        self._index = {camera.name: index for index, (camera, _) in enumerate(ordered)}

        def layer(look: mujoco.MjModel, *, textures: bool) -> tuple[mujoco_warp.Model, mujoco_warp.RenderContext]:
            context = mujoco_warp.create_render_context(
                look,
                nworld=worlds.num_worlds,
                cam_res=[(camera.width, camera.height) for camera, _ in ordered],
                cam_active=[camera in drawn for camera in range(model.ncam)],
                render_rgb=True,
                render_depth=[camera.depth for camera, _ in ordered],
                render_seg=[camera.segmentation for camera, _ in ordered],
                use_textures=textures,
                enabled_geom_groups=[_VISUAL_GROUP],
                render_skybox=True,
                samples_per_pixel=_RAYS_PER_SIDE[quality],
            )
            return mujoco_warp.put_model(look), context

        if quality == "fast":
            self._layers = [layer(_dimmed(model), textures=True)]
        else:
            self._layers = [layer(_lit(model), textures=False), layer(_textured(model), textures=True)]

        def pixels(camera: DrawnCamera, channels: int, dtype: type) -> wp.array:
            return wp.zeros((worlds.num_worlds, camera.height, camera.width, channels), dtype=dtype)

        self.images = {camera.name: pixels(camera, 3, wp.uint8) for camera, _ in ordered}
        """By camera: (N, H, W, 3) uint8 on the device, mirrored as LIBERO's are."""
        self.depths = {camera.name: pixels(camera, 1, float) for camera, _ in ordered if camera.depth}
        """(N, H, W, 1) float32, metres along the camera's axis; the far plane's distance where there is nothing."""
        self.segmentations = {camera.name: pixels(camera, 1, int) for camera, _ in ordered if camera.segmentation}
        """(N, H, W, 1) int32: ids of bodies; `NO_BODY` where there is nothing."""
        self._far = clipping_planes(model)[1]
        self._body_of_geom = wp.array(model.geom_bodyid, dtype=int)
        self.draw = Replayed(self._launch_drawing)
        """Draws all worlds into `images`."""

    def _launch_drawing(self) -> None:
        for model, context in self._layers:
            mujoco_warp.refit_bvh(model, self._worlds.seen, context)
            mujoco_warp.render(model, self._worlds.seen, context)
        first, last = self._layers[0][1], self._layers[-1][1]
        for name, image in self.images.items():
            wp.launch(
                _unpack,
                dim=image.shape[:3],
                inputs=[first.rgb_data, last.rgb_data, first.rgb_adr, self._index[name], len(self._layers)],
                outputs=[image],
            )
        for name, depth in self.depths.items():
            inputs = [first.depth_data, first.depth_adr, self._index[name], self._far]
            wp.launch(_unpack_depth, dim=depth.shape[:3], inputs=inputs, outputs=[depth])
        for name, bodies in self.segmentations.items():
            inputs = [first.seg_data, first.seg_adr, self._index[name], self._body_of_geom]
            wp.launch(_unpack_bodies, dim=bodies.shape[:3], inputs=inputs, outputs=[bodies])


def _lit(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of the model with what OpenGL reads otherwise: a highlight of exponent 0 lights everything, sRGB is decoded."""
    look = copy.copy(model)
    look.mat_shininess[:] = np.maximum(look.mat_shininess, 1e-6)
    for texture in np.flatnonzero(look.tex_colorspace == _SRGB):
        start = look.tex_adr[texture]
        texels = look.tex_data[start : start + look.tex_width[texture] * look.tex_height[texture] * look.tex_nchannel[texture]]
        stored = texels / 255.0
        texels[:] = np.round(255 * np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4))
    return look


def _dimmed(model: mujoco.MjModel) -> mujoco.MjModel:
    """As `_lit`. If light from above adds up to more than 1, that becomes 1, and highlights, which OpenGL clamps away, go."""
    look, light = _lit(model), _light_from_above(model)
    if light > 1.0:
        for colours in (look.light_ambient, look.light_diffuse, look.vis.headlight.ambient, look.vis.headlight.diffuse):
            colours[:] /= light
        look.mat_specular[:] = 0.0
    return look


def _light_from_above(model: mujoco.MjModel) -> float:
    """The most light on a level surface among the places that the room's fixed cameras look at, as OpenGL adds it up."""
    data, shown, geom = mujoco.MjData(model), np.zeros(mujoco.mjNGROUP, np.uint8), np.zeros(1, np.int32)
    shown[_VISUAL_GROUP] = 1
    mujoco.mj_forward(model, data)
    most, head = 0.0, model.vis.headlight
    for camera in np.flatnonzero(model.cam_bodyid == 0):
        ahead = -data.cam_xmat[camera].reshape(3, 3)[:, 2]
        distance = mujoco.mj_ray(model, data, data.cam_xpos[camera], ahead, shown, 1, -1, geom)
        place = data.cam_xpos[camera] + max(distance, 0.0) * ahead
        light = head.ambient.max() + head.diffuse.max() * max(-ahead[2], 0.0) if head.active else 0.0
        for index in np.flatnonzero(model.light_active):
            strength, towards = 1.0, -data.light_xdir[index]
            if model.light_type[index] != mujoco.mjtLightType.mjLIGHT_DIRECTIONAL:
                towards = data.light_xpos[index] - place
                reach = np.linalg.norm(towards)
                towards = towards / reach
                cosine = max(-towards @ data.light_xdir[index], 0.0)
                inside = cosine > np.cos(np.deg2rad(model.light_cutoff[index]))
                strength = inside * cosine ** model.light_exponent[index]
                strength /= model.light_attenuation[index] @ (1.0, reach, reach**2)
            diffuse = model.light_diffuse[index].max() * max(towards[2], 0.0)
            light += strength * (diffuse + model.light_ambient[index].max())
        most = max(most, light)
    return float(most)


def _textured(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of the model with nothing but textures to see, in full light."""
    look = _lit(model)
    for colours in (look.mat_rgba, look.geom_rgba):
        colours[:] = 1.0
    look.light_active[:] = 0
    look.vis.headlight.ambient[:] = 1.0
    for nothing in (look.vis.headlight.diffuse, look.vis.headlight.specular, look.mat_emission, look.mat_specular):
        nothing[:] = 0.0
    return look


@wp.kernel
def _unpack(
    first: wp.array2d[wp.uint32],
    second: wp.array2d[wp.uint32],
    starts: wp.array[int],
    camera: int,
    num_layers: int,
    image: wp.array4d[wp.uint8],
):
    """The layers, each 0xAARRGGBB, multiplied where there are two, and mirrored."""
    world, row, column = wp.tid()
    width = image.shape[2]
    place = starts[camera] + row * width + (width - 1 - column)
    for channel in range(3):
        shift = wp.uint32(16 - 8 * channel)
        value = int((first[world, place] >> shift) & wp.uint32(255))
        if num_layers == 2:
            value = value * int((second[world, place] >> shift) & wp.uint32(255)) / 255
        image[world, row, column, channel] = wp.uint8(value)


@wp.kernel
def _unpack_depth(metres: wp.array2d[float], starts: wp.array[int], camera: int, far: float, depth: wp.array4d[float]):
    """Distances, mirrored; `far` where there is nothing, which is 0 in the ray caster's."""
    world, row, column = wp.tid()
    width = depth.shape[2]
    distance = metres[world, starts[camera] + row * width + (width - 1 - column)]
    depth[world, row, column, 0] = wp.where(distance > 0.0, distance, far)


@wp.kernel
def _unpack_bodies(
    geoms: wp.array2d[wp.vec2i], starts: wp.array[int], camera: int, body_of_geom: wp.array[int], bodies: wp.array4d[int]
):
    """Bodies of the geoms, mirrored."""
    world, row, column = wp.tid()
    width = bodies.shape[2]
    geom = geoms[world, starts[camera] + row * width + (width - 1 - column)][0]
    body = int(wp.static(NO_BODY))
    if geom >= 0:
        body = body_of_geom[geom]
    bodies[world, row, column, 0] = body
