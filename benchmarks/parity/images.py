"""Pictures against LIBERO's, pixel by pixel, and how close those of simplified scenes come."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.parity.goals import goal_states
from benchmarks.parity.stock import STOCK_IMAGES, begin_stock, switch_cameras, turned
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.scene import Scene
from vla_envs.vector.cameras import drawn_cameras
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.vector.rendering import RenderPool

PSNR_SIZE = 256
"""Pixels along a side of the pictures whose PSNR is measured."""


@dataclass(frozen=True, kw_only=True)
class ImageComparison:
    """One task's pictures of both cameras, LIBERO's against those here."""

    num_images: int
    num_identical: int
    largest_difference: int
    """Of any pixel's channel, in 0..255."""
    largest_share: float
    """Share of the channel values of a picture that differ, in the picture where it is largest."""


def compare_images(engine_scene: LiberoEngineScene, stock: Any, views: list[tuple[np.ndarray, int]]) -> ImageComparison:
    """Pictures of the same states.

    Args:
        engine_scene: The task, compiled at full detail.
        stock: LIBERO's env of it.
        views: A state, [time, qpos, qvel], and the height and width of its pictures in pixels, each.
    """
    switch_cameras(stock, on=False)
    begin_stock(stock, engine_scene.scene, views[0][0])
    pairs = []
    for state, size in views:
        switch_cameras(stock, on=True, image_size=size)
        theirs = turned(stock.set_init_state(state))
        with open_engine(size) as engine:
            ours = pictures(engine, engine_scene, state)
        pairs += [(ours[camera], theirs[camera]) for camera in ours]
    switch_cameras(stock, on=False)
    return _compared(pairs)


def compare_episode_images(
    engine_scene: LiberoEngineScene, stock: Any, *, seed: int, num_steps: int, size: int = 128
) -> ImageComparison:
    """What a policy sees: pictures of an episode's first control steps, each side drawing its own physics."""
    rng = np.random.default_rng(seed)
    init_states = engine_scene.scene.init_states
    start = init_states[rng.integers(len(init_states))]
    actions = rng.uniform(-1, 1, (num_steps, 7))
    switch_cameras(stock, on=True, image_size=size)
    begin_stock(stock, engine_scene.scene, start)
    pairs = []
    with open_engine(size) as engine:
        engine.begin([0], [engine_scene], [start])
        for action in actions:
            theirs = turned(stock.step(action)[0])
            engine.step([0], action.reshape(1, 1, 7), np.array([1]), until_goal=False)
            pairs += [(ours[0], theirs[camera]) for camera, ours in engine.pictures().items()]
    switch_cameras(stock, on=False)
    return _compared(pairs)


def psnr_of_fast_detail(full: LiberoEngineScene, fast: LiberoEngineScene, states: list[np.ndarray]) -> dict[str, float]:
    """Camera name -> peak signal-to-noise ratio in dB of simplified pictures, mean over states."""
    ratios: dict[str, list[float]] = {camera: [] for camera in STOCK_IMAGES}
    with open_engine(PSNR_SIZE) as engine:
        for state in states:
            exact, simplified = (pictures(engine, engine_scene, state) for engine_scene in (full, fast))
            for camera, values in ratios.items():
                values.append(psnr(exact[camera], simplified[camera]))
    return {camera: float(np.mean(values)) for camera, values in ratios.items()}


def psnr(exact: np.ndarray, approximate: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures."""
    error = np.mean((exact.astype(np.float64) - approximate) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def states_to_draw(scene: Scene, *, seed: int) -> list[np.ndarray]:
    """An initial state, the one after 20 random actions, and one near the goal, where drawers, knobs and objects are put."""
    rng = np.random.default_rng(seed)
    start = scene.init_states[rng.integers(len(scene.init_states))]
    player = LiberoEngineScene(scene).new_player()
    player.begin(start)
    player.play(rng.uniform(-1, 1, (20, 7)), 20)
    near_goal = np.concatenate([[0.0], next(goal_states(scene, rng)), np.zeros(scene.model.nv)])
    return [start, player.get_state(), near_goal]


@contextmanager
def open_engine(size: int) -> Iterator[MujocoEngine]:
    """An engine of one slot that draws all cameras, `size` pixels high and wide.

    While one is open, others of the process keep their scenes on the GL threads, too.
    """
    pool = RenderPool.acquire("auto")  # an engine's own comes with its first picture
    try:
        with closing(MujocoEngine(1, cameras=drawn_cameras(tuple(STOCK_IMAGES), image_size=size))) as engine:
            yield engine
    finally:
        pool.release()


def pictures(engine: MujocoEngine, scene: LiberoEngineScene, state: np.ndarray) -> dict[str, np.ndarray]:
    """Camera name -> its picture of a state."""
    engine.begin([0], [scene], [state])
    engine.draw([0])
    return {camera: drawn[0] for camera, drawn in engine.pictures().items()}


def _compared(pairs: list[tuple[np.ndarray, np.ndarray]]) -> ImageComparison:
    differences = [int(np.abs(ours.astype(int) - theirs).max()) for ours, theirs in pairs]
    return ImageComparison(
        num_images=len(pairs),
        num_identical=differences.count(0),
        largest_difference=max(differences),
        largest_share=max(float((ours != theirs).mean()) for ours, theirs in pairs),
    )
