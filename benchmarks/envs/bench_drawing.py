"""Where the time of a picture goes on this machine: OpenGL, reading back, or the work around them; and what processes add.

    python -m vla_envs.libero compile --suite libero_object --out SCENES --detail fast      # on any machine with LIBERO
    python benchmarks/envs/bench_drawing.py --suite libero_object --scene-dir SCENES --processes 1 4

Prints a JSON line per measurement: pictures per second of all processes together. Each draws the scenes in turn, at their first
initial state:

    visualise       fills the list of geoms, without OpenGL
    render          and renders it; waits for the GPU at the end of a round
    read            and reads each picture back, as soon as it is rendered
    tiles           renders a round side by side into each scene's buffer, which is read back once
    env             what the env does, in its own thread
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import mujoco
import numpy as np

from vla_envs.libero.cache import load_scene
from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.gl_context import open_device


class Drawn:
    """A scene, ready to be drawn in the context that is current."""

    def __init__(self, model: mujoco.MjModel, state: np.ndarray, camera: int, size: int) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._data.qpos[:] = state[1 : 1 + model.nq]
        mujoco.mj_forward(model, self._data)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._drawn = mujoco.MjvScene(model, maxgeom=1000)
        self._options, self._perturbation, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._options.geomgroup[0] = 0
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._size = size
        self._columns = max(1, self._context.offWidth // size)
        self.num_tiles = self._columns * max(1, self._context.offHeight // size)

    def visualise(self) -> None:
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, self._data, self._options, self._perturbation, self._camera, everything, self._drawn
        )

    def render(self, tile: int = 0) -> None:
        self.visualise()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        row, column = divmod(tile, self._columns)
        mujoco.mjr_render(
            mujoco.MjrRect(column * self._size, row * self._size, self._size, self._size), self._drawn, self._context
        )

    def read(self) -> None:
        self.render()
        pixels = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, mujoco.MjrRect(0, 0, self._size, self._size), self._context)

    def tiles(self) -> None:
        for tile in range(self.num_tiles):
            self.render(tile)
        height, width = self._size * (self.num_tiles // self._columns), self._size * self._columns
        pixels = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, mujoco.MjrRect(0, 0, width, height), self._context)

    def free(self) -> None:
        self._context.free()


def pictures_per_second(draw_round: Callable[[], int], *, seconds: float) -> float:
    """Of a function that draws some and returns how many; its first round does not count."""
    draw_round()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += draw_round()
    return count / (time.perf_counter() - began)


_meeting: Barrier
"""Of the processes: they begin each measurement together."""


def share(meeting: Barrier) -> None:
    global _meeting
    _meeting = meeting


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One process's part: pictures per second, by measurement."""
    try:
        return _measure(arguments)
    except BaseException:
        _meeting.abort()  # the others do not wait for this one
        raise


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    device = open_device(arguments.device)
    context = device.make_context()
    drawn = []
    for task in arguments.tasks:
        scene = load_scene(arguments.suite, task, detail=arguments.detail, scene_dir=arguments.scene_dir)
        drawn.append(Drawn(scene.model, scene.init_states[0], scene.cameras["agentview"], arguments.size))

    def visualise() -> int:
        for scene in drawn:
            scene.visualise()
        return len(drawn)

    def render() -> int:
        for scene in drawn:
            scene.render()
        drawn[-1].read()
        return len(drawn) + 1

    def read() -> int:
        for scene in drawn:
            scene.read()
        return len(drawn)

    def tiles() -> int:
        for scene in drawn:
            scene.tiles()
        return sum(scene.num_tiles for scene in drawn)

    rates: dict[str, float] = {}
    for draw_round in (visualise, render, read, tiles):
        _meeting.wait()
        rates[draw_round.__name__] = pictures_per_second(draw_round, seconds=arguments.seconds)
    for scene in drawn:
        scene.free()
    context.free()
    with_env = LiberoEnv(
        len(arguments.tasks),
        suite=arguments.suite,
        task_ids=arguments.tasks,
        detail=arguments.detail,
        scene_dir=arguments.scene_dir,
        image_size=arguments.size,
        device=arguments.device,
    )
    with_env.reset(seed=0)
    state = with_env.get_state()

    def env() -> int:
        with_env.set_state(state)
        return len(drawn)

    _meeting.wait()
    rates["env"] = pictures_per_second(env, seconds=arguments.seconds)
    with_env.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--detail", default="fast")
    parser.add_argument("--scene-dir", type=Path, help="folder of exported scenes; LIBERO's cache if not given")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for number in arguments.processes:
        with ProcessPoolExecutor(number, mp_context=spawn, initializer=share, initargs=(spawn.Barrier(number),)) as processes:
            told = list(processes.map(measure, [arguments] * number))
        for name in told[0]:
            total = sum(rates[name] for rates in told)
            print(json.dumps({"what": name, "processes": number, "pictures_per_second": round(total, 1)}), flush=True)


if __name__ == "__main__":
    main()
