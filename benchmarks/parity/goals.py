"""Goals against LIBERO's own check, on states made to satisfy or miss each predicate: drawers, knobs and placements are set.

Both sides get the same joint positions; each computes its own contacts and poses, LIBERO in robosuite's simulation, this
project in the scene's model with the engine's compiled recording.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from vla_envs.libero.goals import GoalInputs, InSite, JointPast, Lifted, OnObject, OnSite, Predicate
from vla_envs.libero.scene import Scene
from vla_envs.vector.mujoco_c import contact_layout
from vla_envs.vector.slot import contact_pairs, empty_record, record_goal_inputs, slot_arrays

_LEFT_ALONE = 0.15
"""How often a predicate's part of the state stays as the benchmark stores it."""
_LOWERING_STEPS, _LOWERING_M = 60, 0.004


@dataclass(frozen=True, kw_only=True)
class GoalComparison:
    """Verdicts on one task's states."""

    num_states: int
    num_successes: int
    """States in which LIBERO says that the whole goal holds."""
    num_different: int
    """States in which the two verdicts on the whole goal, or on any predicate, differ."""
    always_or_never: tuple[str, ...]
    """Predicates that held in all states or in none: not really compared."""


def compare_goals(scene: Scene, libero: Any, *, num_states: int = 200, seed: int = 0) -> GoalComparison:
    """Compare verdicts.

    Args:
        scene: The task, compiled.
        libero: LIBERO's env of the task, without its wrapper; its fixtures are moved to where the scene's are.
        num_states: How many states to make.
        seed: Of the states.
    """
    model = libero.sim.model._model
    model.body_pos[:], model.body_quat[:] = scene.model.body_pos, scene.model.body_quat
    positions = [qpos for qpos, _ in zip(goal_states(scene, np.random.default_rng(seed)), range(num_states), strict=False)]
    ours_each, ours = verdicts(scene, positions)
    theirs_each, theirs = np.zeros_like(ours_each), np.zeros_like(ours)
    goal_state = libero.parsed_problem["goal_state"]
    for index, qpos in enumerate(positions):
        libero.sim.set_state_from_flattened(np.concatenate([[0.0], qpos, np.zeros(model.nv)]))
        libero.sim.forward()
        theirs[index] = libero._check_success()
        theirs_each[index] = [libero._eval_predicate(state) for state in goal_state]
    return GoalComparison(
        num_states=num_states,
        num_successes=int(theirs.sum()),
        num_different=int(((ours != theirs) | (ours_each != theirs_each).any(axis=1)).sum()),
        always_or_never=tuple(
            " ".join(state) for state, held in zip(goal_state, theirs_each.T, strict=True) if held.all() or not held.any()
        ),
    )


def verdicts(scene: Scene, positions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(N, predicates) bool and (N,) bool: what the scene's goal says about N joint positions."""
    data = mujoco.MjData(scene.model)
    arrays, layout = slot_arrays(scene.model, data), contact_layout()
    pairs = contact_pairs(scene.model.ngeom, scene.goal.contact_pairs)
    record = empty_record(scene.model, len(positions), len(scene.goal.contact_pairs))
    for index, qpos in enumerate(positions):
        data.qpos[:] = qpos
        mujoco.mj_forward(scene.model, data)
        record_goal_inputs(arrays, layout, pairs, record, index)
    states = GoalInputs(**record._asdict())
    return np.stack([predicate.holds(states) for predicate in scene.goal.predicates], axis=1), scene.goal.holds(states)


def goal_states(scene: Scene, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """(nq,) joint positions without end, at or near what satisfies each predicate of the scene's goal."""
    data = mujoco.MjData(scene.model)
    joints_first = sorted(scene.goal.predicates, key=lambda predicate: not isinstance(predicate, JointPast))
    while True:
        state = scene.init_states[rng.integers(len(scene.init_states))]
        data.qpos[:] = state[1 : 1 + scene.model.nq]
        for predicate in joints_first:
            if rng.random() > _LEFT_ALONE:
                mujoco.mj_fwdPosition(scene.model, data)
                _aim_at(predicate, scene, data, rng)
        yield data.qpos.copy()


def _aim_at(predicate: Predicate, scene: Scene, data: mujoco.MjData, rng: np.random.Generator) -> None:
    if isinstance(predicate, JointPast):
        for address in predicate.qpos_addresses:
            near = [np.nextafter(predicate.threshold, -np.inf), predicate.threshold, np.nextafter(predicate.threshold, np.inf)]
            low, high = scene.model.jnt_range[np.flatnonzero(scene.model.jnt_qposadr == address)[0]]
            data.qpos[address] = rng.choice([*near, *rng.uniform(low, high, 3)])
    elif isinstance(predicate, InSite):
        rotation = data.site_xmat[predicate.site].reshape(3, 3)
        extent = np.abs(rotation @ np.array(predicate.size))
        position = data.site_xpos[predicate.site] + rng.uniform(-1.2, 1.2, 3) * extent
        if rng.random() < 0.2:  # at the lower bound, which is 1 cm lower
            position[2] = data.site_xpos[predicate.site][2] - extent[2] - rng.uniform(0.0, 0.02)
        _put(scene, data, predicate.body, position)
    elif isinstance(predicate, OnSite):
        rotation = data.site_xmat[predicate.site].reshape(3, 3)
        offset = np.array(predicate.size) * rng.uniform(-1.2, 1.2, 3)
        offset[2] = rng.uniform(0.0, predicate.size[2] + 0.12)
        _put(scene, data, predicate.body, data.site_xpos[predicate.site] + rotation.T @ offset)
        if predicate.contact >= 0 and rng.random() < 0.8:
            _lower_until_touching(scene, data, predicate.body, predicate.contact)
    elif isinstance(predicate, OnObject):
        position = data.xpos[predicate.support] + [*rng.uniform(-0.03, 0.03, 2), rng.uniform(-0.02, 0.12)]
        _put(scene, data, predicate.body, position)
        if rng.random() < 0.8:
            _lower_until_touching(scene, data, predicate.body, predicate.contact)
    elif isinstance(predicate, Lifted):
        _put(scene, data, predicate.body, np.array([0.0, 0.0, rng.uniform(0.8, 1.2)]))


def _put(scene: Scene, data: mujoco.MjData, body: int, position: np.ndarray) -> None:
    address = scene.model.jnt_qposadr[scene.model.body_jntadr[body]]
    data.qpos[address : address + 3] = position


def _lower_until_touching(scene: Scene, data: mujoco.MjData, body: int, pair: int) -> None:
    first, second = (set(geoms.tolist()) for geoms in scene.goal.contact_pairs[pair])
    address = scene.model.jnt_qposadr[scene.model.body_jntadr[body]] + 2
    data.qpos[address] += 0.1
    for _ in range(_LOWERING_STEPS):
        mujoco.mj_fwdPosition(scene.model, data)
        contacts = ((int(contact.geom1), int(contact.geom2)) for contact in data.contact)
        if any((a in first and b in second) or (b in first and a in second) for a, b in contacts):
            return
        data.qpos[address] -= _LOWERING_M
