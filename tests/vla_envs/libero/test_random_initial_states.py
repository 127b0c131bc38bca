"""Random initial states of real tasks: inside LIBERO's regions, as LIBERO's own samplers draw them, and never in collision."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import mujoco
import numpy as np
import pytest

from vla_envs.libero.compile import build_libero
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.initial_states import InitialStates
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.libero.scene import Placement, Scene
from vla_envs.vector.settled import SETTLING_ACTION

BOWL_BETWEEN_PLATE_AND_RAMEKIN = ("libero_spatial", 0)
BOWL_ON_BOX = ("libero_spatial", 3)
BOWL_IN_DRAWER = ("libero_spatial", 4)
BOOK_AND_MUG = ("libero_10", 5)
TASKS = [
    BOWL_BETWEEN_PLATE_AND_RAMEKIN,
    BOWL_ON_BOX,
    BOWL_IN_DRAWER,
    ("libero_object", 0),
    ("libero_goal", 3),
    BOOK_AND_MUG,
    ("libero_90", 0),
]
NUM_DRAWS = 20


@cache
def engine_scene(task: tuple[str, int]) -> LiberoEngineScene:
    return shared_scene(*task, "fast", None)


@cache
def drawn_states(task: tuple[str, int]) -> np.ndarray:
    """(NUM_DRAWS, 1 + nq + nv)."""
    initial_states, random = InitialStates(engine_scene(task).scene), np.random.default_rng(0)
    return np.array([initial_states.draw(random) for _ in range(NUM_DRAWS)])


@pytest.fixture(params=TASKS, ids=lambda task: f"{task[0]}-{task[1]}")
def task(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param


def poses(states: np.ndarray, placement: Placement) -> np.ndarray:
    """(..., 7): position and quaternion of one object."""
    return states[..., 1 + placement.qpos_address : 8 + placement.qpos_address]


def placement_of(scene: Scene, object_name: str) -> Placement:
    (found,) = [placement for placement in scene.placements if placement.object_name == object_name]
    return found


def yaws(quaternions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Angles in rad about the vertical, from the reference."""
    angles = []
    for quaternion in quaternions:
        turn, back = np.zeros(4), np.zeros(4)
        mujoco.mju_negQuat(back, reference)
        mujoco.mju_mulQuat(turn, quaternion / np.linalg.norm(quaternion), back)
        np.testing.assert_allclose(turn[1:3], 0, atol=1e-6)
        angles.append(2 * np.arctan(turn[3] / turn[0]))
    return np.array(angles)


def collisions(scene: Scene, states: np.ndarray) -> dict[tuple[str, str], float]:
    """Pairs of movable objects in contact, with the deepest penetration in metres."""
    model, data = scene.model, mujoco.MjData(scene.model)
    movable = {placement.qpos_address: placement.object_name for placement in scene.placements}
    names = {
        int(model.jnt_bodyid[joint]): movable[address]
        for joint, address in enumerate(model.jnt_qposadr)
        if address in movable and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE
    }
    deepest: dict[tuple[str, str], float] = {}
    for state in states:
        data.qpos[:] = state[1 : 1 + model.nq]
        mujoco.mj_forward(model, data)
        for contact in data.contact:
            bodies = {int(model.body_rootid[model.geom_bodyid[geom]]) for geom in contact.geom}
            if len(bodies) == 2 and bodies <= set(names):
                first, second = sorted(names[body] for body in bodies)
                deepest[first, second] = max(deepest.get((first, second), 0.0), -contact.dist)
    return deepest


def test_every_movable_object_has_a_placement(task: tuple[str, int]):
    scene = engine_scene(task).scene
    free = scene.model.jnt_qposadr[scene.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    assert sorted(placement.qpos_address for placement in scene.placements) == sorted(free)


def test_objects_lie_inside_their_regions_all_over_them(task: tuple[str, int]):
    scene, states = engine_scene(task).scene, drawn_states(task)
    data = mujoco.MjData(scene.model)
    for placement in scene.placements:
        places = poses(states, placement)[:, :2].copy()
        if placement.attached_to:
            places -= poses(states, placement_of(scene, placement.attached_to))[:, :2]
        for place, state in zip(places, states, strict=True):
            if placement.site >= 0:
                data.qpos[:] = state[1 : 1 + scene.model.nq]
                mujoco.mj_kinematics(scene.model, data)
                place -= data.site_xpos[placement.site, :2]
        ((x_min, y_min, x_max, y_max),) = placement.ranges
        assert (places >= np.array([x_min, y_min]) - 1e-9).all(), placement.object_name
        assert (places <= np.array([x_max, y_max]) + 1e-9).all(), placement.object_name
        assert (np.ptp(places, axis=0) >= 0.5 * np.array([x_max - x_min, y_max - y_min])).all(), placement.object_name


def test_heights_are_the_benchmarks(task: tuple[str, int]):
    scene, states = engine_scene(task).scene, drawn_states(task)
    for placement in scene.placements:
        stored = poses(scene.init_states, placement)[:, 2]
        heights = poses(states, placement)[:, 2]
        assert stored.min() <= heights.min() <= heights.max() <= stored.max()


@pytest.mark.parametrize("task", [BOOK_AND_MUG, ("libero_goal", 3)], ids=["book", "bowl"])
def test_places_and_angles_are_distributed_as_liberos_own_samplers_draw_them(task: tuple[str, int]):
    scene = engine_scene(task).scene
    initial_states, random = InitialStates(scene), np.random.default_rng(1)
    mine = np.array([initial_states.draw(random) for _ in range(150)])
    libero, before = build_libero(*task), np.random.get_state()
    try:
        np.random.seed(1)
        draws = [libero.placement_initializer.sample() for _ in range(150)]
    finally:
        np.random.set_state(before)
        libero.close()
    for placement in scene.placements:
        theirs = np.array([np.concatenate(draw[placement.object_name][:2]) for draw in draws])
        own = poses(mine, placement)
        for axis in (0, 1):
            extent = np.ptp(theirs[:, axis])
            assert own[:, axis].min() == pytest.approx(theirs[:, axis].min(), abs=0.1 * extent + 1e-9)
            assert own[:, axis].max() == pytest.approx(theirs[:, axis].max(), abs=0.1 * extent + 1e-9)
        own_yaws, their_yaws = yaws(own[:, 3:], own[0, 3:]), yaws(theirs[:, 3:], own[0, 3:])
        assert own_yaws.min() == pytest.approx(their_yaws.min(), abs=0.1)
        assert own_yaws.max() == pytest.approx(their_yaws.max(), abs=0.1)
        assert np.ptp(own_yaws) > 0.6 or placement.object_name != "black_book_1"


def test_no_movable_objects_collide_deeper_than_in_the_benchmarks_own_states(task: tuple[str, int]):
    scene = engine_scene(task).scene
    stored, mine = collisions(scene, scene.init_states), collisions(scene, drawn_states(task))
    assert set(mine) <= set(stored)
    for pair, depth in mine.items():
        assert depth <= stored[pair], pair


def test_objects_do_not_collide_even_where_the_benchmarks_own_states_do():
    scene = engine_scene(BOWL_BETWEEN_PLATE_AND_RAMEKIN).scene
    assert collisions(scene, scene.init_states)["akita_black_bowl_1", "plate_1"] > 5e-3
    assert collisions(scene, drawn_states(BOWL_BETWEEN_PLATE_AND_RAMEKIN)) == {}


def test_objects_settle_where_they_were_put(task: tuple[str, int]):
    scene = engine_scene(task)
    player, actions = scene.new_player(), np.tile(SETTLING_ACTION, (10, 1))
    for state in drawn_states(task):
        player.begin(state)
        assert player.play(actions, 10) == 10
        assert not scene.judge(player.record, 10).any()
        for placement in scene.scene.placements:
            before, after = poses(state, placement), poses(player.get_state(), placement)
            assert np.linalg.norm(after[:2] - before[:2]) < 0.03, placement.object_name
            assert -0.05 < before[2] - after[2] < 0.2, placement.object_name


def test_objects_are_not_where_any_stored_state_has_them(task: tuple[str, int]):
    scene = engine_scene(task).scene
    addresses = np.array([1 + placement.qpos_address for placement in scene.placements])
    columns = np.concatenate([addresses, addresses + 1])
    together = np.concatenate([drawn_states(task), scene.init_states])[:, columns]
    for index in range(NUM_DRAWS):
        distances = np.abs(together - together[index]).max(axis=1)
        assert np.delete(distances, index).min() > 1e-4


def test_what_is_not_a_movable_object_is_as_in_one_of_the_stored_states_and_at_rest(task: tuple[str, int]):
    scene, states = engine_scene(task).scene, drawn_states(task)
    num_positions = scene.model.nq
    fixed = np.ones(num_positions, bool)
    for placement in scene.placements:
        fixed[placement.qpos_address : placement.qpos_address + 7] = False
    stored = scene.init_states[:, 1 : 1 + num_positions][:, fixed]
    origins = [np.flatnonzero((stored == state[1 : 1 + num_positions][fixed]).all(axis=1)) for state in states]
    assert all(len(origin) for origin in origins)
    assert len({int(origin[0]) for origin in origins}) > 1
    assert (states[:, 0] == 0).all()
    assert (states[:, 1 + num_positions :] == 0).all()


def test_an_object_on_another_moves_along():
    scene, states = engine_scene(BOWL_ON_BOX).scene, drawn_states(BOWL_ON_BOX)
    bowl, box = (poses(states, placement_of(scene, name)) for name in ("akita_black_bowl_1", "cookies_1"))
    np.testing.assert_allclose(bowl[:, :2], box[:, :2])
    assert np.ptp(box[:, 0]) > 0.01


def test_an_object_in_a_drawer_is_where_the_drawer_is():
    scene, states = engine_scene(BOWL_IN_DRAWER).scene, drawn_states(BOWL_IN_DRAWER)
    bowl = poses(states, placement_of(scene, "akita_black_bowl_1"))[:, :2]
    drawer = states[:, 1 + scene.model.joint("wooden_cabinet_1_top_level").qposadr[0]]
    order = np.argsort(drawer)
    far, near = bowl[order[0]], bowl[order[-1]]
    assert np.ptp(drawer) > 0.005
    assert np.linalg.norm(far - near) == pytest.approx(np.ptp(drawer), rel=1e-6)


def test_equal_seeds_draw_equal_states_and_others_do_not():
    initial_states = InitialStates(engine_scene(BOWL_ON_BOX).scene)
    first, again, other = (initial_states.draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_generator_goes_on_from_draw_to_draw():
    random = np.random.default_rng(0)
    initial_states = InitialStates(engine_scene(BOWL_ON_BOX).scene)
    assert all((one != next_one).any() for one, next_one in pairwise(initial_states.draw(random) for _ in range(3)))


def test_regions_without_room_are_an_error_that_names_the_task():
    scene = engine_scene(BOWL_ON_BOX).scene
    plate = placement_of(scene, "plate_1")
    crowded = [replace(other, ranges=plate.ranges) if other.object_name == "cookies_1" else other for other in scene.placements]
    with pytest.raises(RuntimeError, match=rf"{scene.name}: no placement without collisions was found in \d+ attempts"):
        InitialStates(replace(scene, placements=tuple(crowded))).draw(np.random.default_rng(0))
