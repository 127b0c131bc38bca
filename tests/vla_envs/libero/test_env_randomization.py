"""What an episode draws anew belongs to its seed alone, changes what it should and nothing else, and leaves no trace."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, almost_done, assert_same_states, loaded_scene, make_envs, play, random_actions, still

from vla_envs import Randomization
from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.fixtures import draw_fixtures, fixture_placements
from vla_envs.vector.cameras import Camera
from vla_envs.vector.look import patterns, surfaces

ABOVE = Camera(name="above", position=(0.1, 0.2, 2.0), target=(0, 0, 0.9))
LIGHTS = {"light_intensity": 0.5, "light_position_m": 1.0, "light_direction_deg": 20.0}
PARTS: dict[str, dict[str, Any]] = {
    "fixtures": {"fixtures": True},
    "lights": LIGHTS,
    "colours": {"colours": 0.5},
    "textures": {"textures": True},
    "camera": {"camera_position_m": 0.05, "camera_rotation_deg": 3.0},
}
EVERYTHING = {name: value for part in PARTS.values() for name, value in part.items()}
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, 7))
SHOWN = ("image", "wrist_image", "above_image", "agentview_depth", "agentview_segmentation")
pytestmark = pytest.mark.usefixtures("opengl")


def make(num_envs: int = 1, randomization: Any = None, **arguments: Any) -> LiberoEnv:
    drawing = {"cameras": ("agentview", "wrist", ABOVE), "depth": ("agentview",), "segmentation": ("agentview",)}
    given = {"autoreset_mode": "Disabled", "settle_steps": 2, "randomization": randomization}
    return make_envs(num_envs, **(drawing | given | arguments))


def episode(envs: LiberoEnv, seed: int, slot: int = 0) -> dict[str, Any]:
    """What a slot shows and where it is after two actions of an episode of this seed."""
    mask = np.arange(envs.num_envs) == slot
    seeds = [seed if chosen else None for chosen in mask]
    options = {"reset_mask": mask, "init_state_id": 0}
    if envs._starts[0] is None:
        envs.reset(seed=[99] * envs.num_envs)
    first, _ = envs.reset(seed=seeds, options=options)
    for action in ACTIONS:
        last, *_ = envs.step(np.broadcast_to(action, envs.action_space.shape))
    seen = {f"{when} {key}": observed[key][slot] for when, observed in (("first", first), ("last", last)) for key in SHOWN}
    return seen | {"state": envs.get_state()[slot], "camera": envs.camera_extrinsics("above")[slot]}


def same(mine: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    return {key for key in mine if np.array_equal(mine[key], theirs[key])}


@pytest.fixture(scope="module")
def usual() -> Iterator[dict[str, Any]]:
    """An episode as it is without any of this."""
    envs = make()
    yield episode(envs, 1)
    envs.close()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_changes_what_it_should_and_only_that(part: str, usual: dict[str, Any]):
    envs = make(randomization=PARTS[part])
    mine = episode(envs, 1)
    envs.close()
    unchanged = same(mine, usual)
    surfaces_seen = {f"{when} agentview_{kind}" for when in ("first", "last") for kind in ("depth", "segmentation")}
    pictures = {f"{when} {camera}" for when in ("first", "last") for camera in ("image", "above_image")}
    assert not unchanged & pictures
    if part == "fixtures":
        assert "camera" in unchanged
        assert not unchanged & surfaces_seen
    else:
        assert "state" in unchanged, "a look changes no physics"
        assert ("camera" in unchanged) == (part != "camera")
        assert (unchanged >= surfaces_seen) == (part != "camera")


def test_an_episode_belongs_to_its_seed_whichever_slot_plays_it_and_however_many_there_are(usual: dict[str, Any]):
    alone, many = make(randomization=EVERYTHING), make(3, randomization=Randomization(**EVERYTHING))
    mine = episode(alone, 1)
    episode(many, 5, slot=2)
    assert same(mine, episode(many, 1, slot=2)) == mine.keys()
    other = episode(many, 5, slot=1)
    assert not same(mine, other) & {"first image", "last above_image", "camera"}
    assert same(mine, episode(alone, 1)) == mine.keys(), "again, after it was settled before"
    alone.close()
    many.close()


def test_another_env_of_the_same_scene_shows_nothing_of_it(usual: dict[str, Any]):
    """They share the model; here both draw in turn."""
    randomized, plain = make(2, randomization=EVERYTHING), make(2)
    randomized.reset(seed=0)
    assert same(episode(plain, 1), usual) == usual.keys()
    episode(randomized, 1)
    assert same(episode(plain, 1, slot=1), usual) == usual.keys()
    randomized.close()
    plain.close()


def test_success_is_judged_where_fixtures_stand_and_privileged_views_see_them_there():
    envs = make(2, randomization={"fixtures": True}, cameras=(), depth=(), segmentation=(), chunk_size=20)
    envs.reset(seed=[1, 2], options={"init_state_id": 0})
    stands = [envs.privileged(slot).body("wooden_cabinet_1").position for slot in (0, 1)]
    scene = loaded_scene(*BOWL_ON_PLATE).scene
    (usual,) = (scene.model.body(f"wooden_cabinet_1_{name}").pos for name in ("main",))
    assert all(0.0001 < np.abs(place - usual).max() < 0.03 for place in stands)
    assert (stands[0] != stands[1]).any()
    envs.set_state([almost_done(*BOWL_ON_PLATE, state) for state in envs.get_state()])
    *_, terminated, _, _ = envs.step(still(envs))
    assert terminated.all()
    envs.reset(seed=[3, 4])
    assert (envs.privileged(0).body("wooden_cabinet_1").position != stands[0]).any(), "each episode draws anew"
    envs.close()


def test_fixtures_stand_within_the_regions_of_the_task_in_which_the_scene_has_them_too():
    scene = loaded_scene(*BOWL_ON_PLATE).scene
    placements = fixture_placements(scene)
    names = {scene.model.body(placement.body).name for placement in placements}
    assert names == {"wooden_cabinet_1_main", "flat_stove_1_main"}
    drawn = [draw_fixtures(placements, scene.model, seed) for seed in range(20)]
    for placement in placements:
        places = np.array([poses[placement.body][0] for poses in drawn])
        (x_min, y_min, x_max, y_max) = placement.ranges[0]
        for place in (*places, scene.model.body_pos[placement.body]):
            assert x_min <= place[0] <= x_max
            assert y_min <= place[1] <= y_max
        assert (np.ptp(places, axis=0)[:2] > 0.5 * np.array([x_max - x_min, y_max - y_min])).all()
        assert (places[:, 2] == scene.model.body_pos[placement.body, 2]).all()
        assert placement.yaw_range[0] <= 0 <= placement.yaw_range[1]
    assert draw_fixtures(placements, scene.model, 3)[placements[0].body][0].tolist() == drawn[3][placements[0].body][0].tolist()


def test_a_room_has_surfaces_and_patterns_for_them_and_none_is_the_robots_or_a_meshs():
    model = loaded_scene(*BOWL_ON_PLATE).model
    names = {model.mat(material).name for material in patterns(model)}
    assert {"floorplane", "walls_mat", "table_texture"} <= names
    assert not any("robot" in name or "bowl" in name for name in names)
    shown = {model.geom(geom).name for geoms in surfaces(model) for geom in geoms}
    assert {"floor", "table_visual", "wall_front_visual"} <= shown
    assert not any("stove" in name for name in shown)


def test_isaac_envs_draw_looks_too_and_leave_fixtures_where_they_are():
    arguments: dict[str, Any] = {"suite": "libero_spatial", "task_id": 0, "detail": "fast", "image_size": 32, "settle_steps": 0}
    images = []
    for randomization in (None, {"colours": 0.5}):
        envs = gym.make_vec("Isaac-v0", num_envs=1, backend="mujoco", randomization=randomization, **arguments)
        images.append(envs.reset(seed=3)[0]["image"])
        states = envs.unwrapped.get_state()
        envs.close()
        assert len(states) == 1
    assert (images[0] != images[1]).any()
    with pytest.raises(ValueError, match="fixtures stay where they are in Isaac-v0"):
        gym.make_vec("Isaac-v0", num_envs=1, backend="mujoco", randomization={"fixtures": True}, **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"randomization": True}, "randomization must be a Randomization, or a mapping with any of fixtures, .* got True"),
        ({"randomization": {"light": 1}}, "a mapping with any of fixtures, light_intensity, .* got {'light': 1}"),
        ({"randomization": {}}, "must draw something: set any of fixtures, .*; for nothing, randomization=None"),
        ({"randomization": {"colours": 1.0}}, "colours must be a number from 0 upwards, below 1, got 1.0"),
        ({"randomization": {"camera_rotation_deg": 90}}, "camera_rotation_deg must be .* below 90, got 90"),
        ({"randomization": {"camera_position_m": float("nan")}}, "camera_position_m must be .*, finite, got nan"),
        ({"randomization": {"light_position_m": "1"}}, "light_position_m must be a number from 0 upwards, finite, got '1'"),
        ({"randomization": {"fixtures": 1}}, "fixtures must be True or False, got 1"),
        ({"randomization": {"colours": 0.1}, "engine": "warp"}, "randomization must be None; 'mujoco' takes it"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=match):
        make_envs(**arguments)


def test_isaac_lab_refuses_it():
    with pytest.raises(ValueError, match="randomization is for the backend 'mujoco', not for 'isaaclab'"):
        gym.make_vec("Isaac-v0", num_envs=1, backend="isaaclab", randomization={"colours": 0.1})


def test_how_it_was_made_is_told_in_json_and_makes_the_same_env():
    envs = make(randomization=Randomization(colours=0.5), cameras=("agentview",), depth=(), segmentation=())
    assert envs.spec is not None
    again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()), num_envs=1)
    np.testing.assert_array_equal(again.reset(seed=2)[0]["image"], envs.reset(seed=2)[0]["image"])
    again.close()
    envs.close()


def test_turned_off_it_draws_nothing_from_a_slots_stream():
    """Starts are those of earlier versions, also after many episodes."""
    envs, plain = make(cameras=(), depth=(), segmentation=()), make_envs(1, settle_steps=2, autoreset_mode="Disabled")
    for one in (envs, plain):
        one.reset(seed=8)
        one.reset()
    assert envs._slot_rngs[0] is not None
    assert plain._slot_rngs[0] is not None
    expected = np.random.default_rng([8, 0])
    expected.integers(50, size=2)
    assert envs._slot_rngs[0].bit_generator.state == expected.bit_generator.state
    assert_same_states(*(play(one, random_actions(one, 1))[0] for one in (envs, plain)))
    envs.close()
    plain.close()
