"""Random initial states of a task: objects placed anew inside the regions that the task itself allows, never in collision.

Positions are drawn; heights, orientations and everything that is not a movable object (robot, drawers, knobs) come from one
of the benchmark's stored states, drawn too, so that objects stand as they stand there. What starts on another object moves with it.
"""

import numpy as np

from vla_envs.libero.scene import Placement, Scene

_MAX_ATTEMPTS = 1000
_CLEARANCE = 0.01
"""Metres between the circles that keep two objects apart."""


def sample_initial_states(scene: Scene, random: np.random.Generator, count: int) -> np.ndarray:
    """Draw states.

    Args:
        scene: The task.
        random: Where numbers come from.
        count: How many.

    Returns:
        (count, 1 + nq + nv) float64: [time, qpos, qvel], at rest.

    Raises:
        RuntimeError: The task's regions leave no room for its objects.
    """
    return (
        np.stack([_sample(scene, random) for _ in range(count)])
        if count
        else np.zeros((0, 1 + scene.model.nq + scene.model.nv))
    )


def _sample(scene: Scene, random: np.random.Generator) -> np.ndarray:
    stored = scene.init_states[random.integers(len(scene.init_states))]
    state = stored.copy()
    state[0] = 0.0
    state[1 + scene.model.nq :] = 0.0
    free = [placement for placement in scene.placements if len(placement.ranges)]
    radii = np.array([placement.horizontal_radius for placement in free])
    stored_places = np.array([_place(stored, placement) for placement in free]).reshape(-1, 2)
    for _ in range(_MAX_ATTEMPTS):
        places = np.array([_draw(placement, random) for placement in free]).reshape(-1, 2)
        if _is_clear(places, radii, scene.obstacles, stored_places):
            break
    else:
        raise RuntimeError(f"{scene.name}: no free placement of {len(free)} objects was found in {_MAX_ATTEMPTS} attempts")
    moved = {placement.object_name: place - _place(stored, placement) for placement, place in zip(free, places, strict=True)}
    for placement in scene.placements:
        shift = moved.get(placement.object_name, moved.get(placement.attached_to))
        if shift is not None:
            address = 1 + placement.qpos_address
            state[address : address + 2] += shift
    return state


def _place(state: np.ndarray, placement: Placement) -> np.ndarray:
    return state[1 + placement.qpos_address : 3 + placement.qpos_address]


def _draw(placement: Placement, random: np.random.Generator) -> np.ndarray:
    x_min, y_min, x_max, y_max = placement.ranges[random.integers(len(placement.ranges))]
    return np.array([random.uniform(x_min, x_max), random.uniform(y_min, y_max)])


def _is_clear(places: np.ndarray, radii: np.ndarray, obstacles: np.ndarray, stored_places: np.ndarray) -> bool:
    """Whether no two circles overlap more than the benchmark's own states have them.

    Radii are LIBERO's, which its own regions do not always respect (a bowl's region may touch a cabinet's circle): what is
    closer in the stored state may be as close here.
    """

    def gaps(at: np.ndarray) -> np.ndarray:
        others = np.concatenate([at, obstacles[:, :2]])
        apart = np.linalg.norm(at[:, None] - others[None], axis=-1)
        wanted = radii[:, None] + np.concatenate([radii, obstacles[:, 2]])[None] + _CLEARANCE
        return apart - wanted

    mine, theirs = gaps(places), gaps(stored_places)
    different = ~np.eye(len(places), mine.shape[1], dtype=bool)
    return bool((mine >= np.minimum(0.0, theirs))[different].all())
