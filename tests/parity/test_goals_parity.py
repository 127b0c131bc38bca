"""The goal verdicts of this project against LIBERO's own, on states that are made and on states that physics reaches."""

from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
import pytest

from benchmarks.parity.goals import compare_goals, goal_states, verdicts
from vla_envs.libero.cache import load_scene
from vla_envs.libero.compile import build_libero
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.goals import InSite, OnObject
from vla_envs.libero.scene import Scene

DRAWER_AND_BOWL = ("libero_goal", 3)
BOWL_ON_PLATE = ("libero_spatial", 0)
STOVE_AND_POT = ("libero_10", 2)
TASKS = [DRAWER_AND_BOWL, BOWL_ON_PLATE, STOVE_AND_POT]
STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: f"{task[0]}-{task[1]}")
def both(request: pytest.FixtureRequest) -> Any:
    """A compiled task and LIBERO's own env of it."""
    libero = build_libero(*request.param)
    yield load_scene(*request.param), libero
    libero.close()


def test_verdicts_are_liberos_on_states_that_satisfy_or_miss_each_predicate(both: tuple[Scene, Any]):
    scene, libero = both
    result = compare_goals(scene, libero, num_states=150, seed=1)
    assert result.num_different == 0
    assert 0 < result.num_successes < result.num_states
    assert result.always_or_never == ()


def test_the_comparison_notices_a_goal_that_is_slightly_wrong(both: tuple[Scene, Any]):
    scene, libero = both
    wrong = []
    for predicate in scene.goal.predicates:
        if isinstance(predicate, InSite):
            predicate = replace(predicate, size=tuple(0.8 * extent for extent in predicate.size))
        elif isinstance(predicate, OnObject):
            predicate = replace(predicate, support=predicate.body)
        elif hasattr(predicate, "comparison"):
            flipped = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}[predicate.comparison]
            predicate = replace(predicate, comparison=flipped)
        wrong.append(predicate)
    wrong_scene = replace(scene, goal=replace(scene.goal, predicates=tuple(wrong)))
    assert compare_goals(wrong_scene, libero, num_states=60, seed=2).num_different > 0


def test_episodes_succeed_on_the_control_step_on_which_liberos_do(both: tuple[Scene, Any]):
    """From states close to success, physics decides: objects are dropped from above and drawers glide."""
    scene, libero = both
    model = libero.sim.model._model
    model.body_pos[:], model.body_quat[:] = scene.model.body_pos, scene.model.body_quat
    engine_scene = LiberoEngineScene(scene)
    player = engine_scene.new_player()
    rng = np.random.default_rng(3)
    outcomes = []
    for qpos in [qpos for qpos, _ in zip(goal_states(scene, rng), range(40), strict=False)]:
        _, holds = verdicts(scene, [qpos])
        if not holds[0]:
            continue
        for predicate in scene.goal.predicates:
            if hasattr(predicate, "body"):
                qpos[scene.model.jnt_qposadr[scene.model.body_jntadr[predicate.body]] + 2] += 0.02
        state = np.concatenate([[0.0], qpos, np.zeros(scene.model.nv)])
        libero.sim.set_state_from_flattened(state)
        libero.sim.forward()
        libero.timestep, libero.done = 0, False
        theirs = [bool(libero.step(STILL)[2]) for _ in range(8)]
        player.begin(state)
        player.play(np.tile(STILL, (8, 1)), 8)
        ours = engine_scene.judge(player.record, 8)
        np.testing.assert_array_equal(ours, theirs)
        outcomes += theirs
        if len(outcomes) >= 40:
            break
    assert any(outcomes)
    assert not all(outcomes)


def test_contact_pairs_name_geoms_that_can_touch(both: tuple[Scene, Any]):
    model: mujoco.MjModel = both[0].model
    for pair in both[0].goal.contact_pairs:
        for geoms in pair:
            assert ((model.geom_contype[geoms] | model.geom_conaffinity[geoms]) != 0).any()
