"""Pictures as MuJoCo draws them, from what Newton's ray tracer sees: its own lights have no colours, so light is added up here.

MuJoCo's OpenGL multiplies a surface's colour by the sum of all lights' ambient, diffuse and specular parts, without any
conversion to linear space; lights in LIBERO's scenes cast no shadows. The camera gives colour, normal, distance and look per
ray.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import warp as wp
from isaaclab.envs import ManagerBasedEnv
from isaaclab.managers import ManagerTermBase, ObservationTermCfg

from vla_envs.isaac.lab.task_file import ConvertedTask, load_task_file

wp.set_module_options({"enable_backward": False})

SEEN = ["albedo", "normals", "distance_to_camera", "semantic_segmentation"]
"""What a camera has to give."""
SAMPLES = {"fast": 1, "match": 2}
"""Rays per side of a pixel, by quality."""


@wp.struct
class Lights:
    """L lights, see `task_file.Light`."""

    directional: wp.array[int]
    follows_camera: wp.array[int]
    position: wp.array[wp.vec3]
    direction: wp.array[wp.vec3]
    diffuse: wp.array[wp.vec3]
    ambient: wp.array[wp.vec3]
    specular: wp.array[wp.vec3]
    attenuation: wp.array[wp.vec3]
    cos_cutoff: wp.array[float]
    exponent: wp.array[float]


class CameraPicture(ManagerTermBase):
    """(N, H, W, 3) uint8: what a camera sees, mirrored left to right as in the published LIBERO sets.

    Args:
        cfg: `params` are `task_file`, the path of the converted task; `camera`, a name in its `views`; and `quality`, one of
            `SAMPLES`.
        env: Has a sensor `<camera>_camera` that gives `SEEN`, as many times larger than the picture as there are samples.
    """

    def __init__(self, cfg: ObservationTermCfg, env: ManagerBasedEnv) -> None:
        super().__init__(cfg, env)
        task = load_task_file(cfg.params["task_file"])
        self._samples = SAMPLES[cfg.params["quality"]]
        self._sensor = env.scene[f"{cfg.params['camera']}_camera"]
        height, width = (extent // self._samples for extent in self._sensor.image_shape)
        self._half_height = float(np.tan(np.radians(task.views[cfg.params["camera"]].fovy) / 2.0))
        self._task = task
        with wp.ScopedDevice(self.device):
            self._lights = _lights_on_device(task)
            self._picture = wp.zeros((self.num_envs, height, width, 3), dtype=wp.uint8)
        self._looks: wp.array | None = None
        """(ids,) vec3: emission, specular, shininess; None until the camera has told its ids."""

    def __call__(self, env: ManagerBasedEnv, task_file: str, camera: str, quality: str) -> torch.Tensor:
        """Draw all worlds."""
        data = self._sensor.data
        seen = {name: data.output[name].warp for name in SEEN}
        with wp.ScopedDevice(self.device):
            if self._looks is None:
                labels = data.info["semantic_segmentation"]["idToLabels"]
                self._looks = wp.array(_looks_by_id(self._task, labels), dtype=wp.vec3)
            wp.launch(
                _shade,
                dim=self._picture.shape[:3],
                inputs=[
                    seen["albedo"],
                    seen["normals"],
                    seen["distance_to_camera"],
                    seen["semantic_segmentation"],
                    self._looks,
                    self._lights,
                    wp.vec3(*self._task.background),
                    wp.from_torch(data.pos_w.torch.contiguous(), dtype=wp.vec3),
                    wp.from_torch(data.quat_w_opengl.contiguous(), dtype=wp.quat),
                    self._half_height,
                    self._samples,
                ],
                outputs=[self._picture],
            )
        return wp.to_torch(self._picture)


def _lights_on_device(task: ConvertedTask) -> Lights:
    lights = Lights()
    for name in ("directional", "follows_camera"):
        setattr(lights, name, wp.array([int(getattr(light, name)) for light in task.lights], dtype=int))
    for name in ("position", "direction", "diffuse", "ambient", "specular", "attenuation"):
        setattr(lights, name, wp.array(np.array([getattr(light, name) for light in task.lights]), dtype=wp.vec3))
    lights.cos_cutoff = wp.array(np.cos(np.radians([light.cutoff for light in task.lights])), dtype=float)
    lights.exponent = wp.array([light.exponent for light in task.lights], dtype=float)
    return lights


def _looks_by_id(task: ConvertedTask, labels: dict[int, Any]) -> np.ndarray:
    """(ids, 3) from a camera's `idToLabels`."""
    looks = np.zeros((max(labels, default=0) + 1, 3))
    for number, label in labels.items():
        if isinstance(label, dict) and label.get("look") in task.looks:
            looks[number] = task.looks[label["look"]]
    return looks


@wp.func
def _lit(
    colour: wp.vec3, normal: wp.vec3, place: wp.vec3, ray: wp.vec3, forward: wp.vec3, look: wp.vec3, lights: Lights
) -> wp.vec3:
    """MuJoCo's colour of a surface, in [0, 1]."""
    light_sum = colour * 0.0 + wp.vec3(look[0], look[0], look[0])
    for light in range(lights.diffuse.shape[0]):
        towards = -lights.direction[light]
        strength = wp.float32(1.0)
        if lights.follows_camera[light] == 1:
            towards = -forward
        elif lights.directional[light] == 0:
            away = lights.position[light] - place
            distance = wp.length(away)
            towards = away / distance
            fade = lights.attenuation[light]
            strength = 1.0 / (fade[0] + fade[1] * distance + fade[2] * distance * distance)
            along = -wp.dot(towards, lights.direction[light])
            if along < lights.cos_cutoff[light]:
                strength = 0.0
            else:
                strength = strength * wp.pow(wp.max(along, 0.0), lights.exponent[light])
        facing = wp.dot(normal, towards)
        light_sum += lights.ambient[light]
        if facing > 0.0:
            half = wp.normalize(towards - ray)
            shine = wp.pow(wp.max(wp.dot(normal, half), 0.0), look[2] * 128.0) * look[1]
            light_sum += strength * (facing * lights.diffuse[light] + shine * lights.specular[light])
    light_sum = wp.vec3(wp.min(light_sum[0], 1.0), wp.min(light_sum[1], 1.0), wp.min(light_sum[2], 1.0))
    return wp.cw_mul(colour, light_sum)


@wp.kernel
def _shade(
    albedo: wp.array4d[wp.uint8],
    normals: wp.array4d[float],
    distances: wp.array4d[float],
    labels: wp.array4d[wp.int32],
    looks: wp.array[wp.vec3],
    lights: Lights,
    background: wp.vec3,
    positions: wp.array[wp.vec3],
    orientations: wp.array[wp.quat],
    half_height: float,
    samples: int,
    picture: wp.array4d[wp.uint8],
):
    world, row, column = wp.tid()
    height = float(albedo.shape[1])
    width = float(albedo.shape[2])
    turn = orientations[world]
    forward = wp.quat_rotate(turn, wp.vec3(0.0, 0.0, -1.0))
    total = wp.vec3()
    for sample in range(samples * samples):
        y = row * samples + sample / samples
        x = column * samples + sample % samples
        if distances[world, y, x, 0] <= 0.0:
            total += background
            continue
        right = (2.0 * (float(x) + 0.5) - width) / height * half_height
        up = (height - 2.0 * (float(y) + 0.5)) / height * half_height
        ray = wp.normalize(wp.quat_rotate(turn, wp.vec3(right, up, -1.0)))
        normal = wp.normalize(wp.vec3(normals[world, y, x, 0], normals[world, y, x, 1], normals[world, y, x, 2]))
        if wp.dot(normal, ray) > 0.0:
            normal = -normal
        colour = wp.vec3(float(albedo[world, y, x, 0]), float(albedo[world, y, x, 1]), float(albedo[world, y, x, 2])) / 255.0
        place = positions[world] + ray * distances[world, y, x, 0]
        total += _lit(colour, normal, place, ray, forward, looks[labels[world, y, x, 0]], lights)
    for channel in range(3):
        shade = total[channel] / float(samples * samples) * 255.0 + 0.5
        picture[world, row, picture.shape[2] - 1 - column, channel] = wp.uint8(wp.clamp(shade, 0.0, 255.0))
