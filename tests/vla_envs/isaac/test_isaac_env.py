"""`Isaac-v0` on real tasks: one task in all slots, every episode from a state of its own; otherwise as `Libero-v0`."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from vla_envs.errors import MissingDependencyError, SceneFormatError
from vla_envs.isaac.env import IsaacEnv
from vla_envs.libero.cache import export_scenes
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.recent_scenes import shared_scene

SUITE, TASK = "libero_spatial", 3


@pytest.fixture(scope="module", autouse=True)
def scene() -> LiberoEngineScene:
    """The scene that all envs of these tests share, kept meanwhile."""
    return shared_scene(SUITE, TASK, "fast", None)


def make_envs(num_envs: int = 2, **arguments: Any) -> IsaacEnv:
    arguments = {"suite": SUITE, "task_id": TASK, "cameras": (), "image_size": 32, "detail": "fast"} | arguments
    envs = gym.make_vec("Isaac-v0", num_envs=num_envs, **arguments)
    assert isinstance(envs, IsaacEnv)
    return envs


def rest(envs: IsaacEnv) -> np.ndarray:
    """No motion, gripper open."""
    actions = np.zeros(envs.action_space.shape, np.float32)
    actions[..., -1] = -1
    return actions


def starts(envs: IsaacEnv, **arguments: Any) -> np.ndarray:
    """(N, ...) states after `reset`."""
    envs.reset(**arguments)
    return np.array(envs.get_state())


def test_all_slots_play_the_one_task_from_states_of_their_own():
    envs = make_envs(3, settle_steps=0)
    observations, info = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert len(set(observations["instruction"])) == 1
    assert info["task_id"].tolist() == [TASK] * 3
    assert info["init_state_id"].tolist() == [-1] * 3
    states = np.array(envs.get_state())
    assert all((states[one] != states[other]).any() for one, other in ((0, 1), (0, 2), (1, 2)))
    envs.close()


def test_starts_are_deterministic_under_a_seed_and_differ_between_episodes_and_seeds():
    envs, twin = make_envs(settle_steps=0), make_envs(settle_steps=0)
    first, second = starts(envs, seed=5), starts(envs)
    np.testing.assert_array_equal(first, starts(twin, seed=5))
    np.testing.assert_array_equal(second, starts(twin))
    np.testing.assert_array_equal(first, starts(envs, seed=5))
    assert (first != second).any(axis=1).all()
    assert (first != starts(envs, seed=6)).any(axis=1).all()
    envs.close()
    twin.close()


def test_a_slots_starts_do_not_depend_on_the_number_of_slots():
    few, many = make_envs(1, settle_steps=0), make_envs(3, settle_steps=0)
    np.testing.assert_array_equal(starts(few, seed=1)[0], starts(many, seed=1)[0])
    few.close()
    many.close()


def test_a_task_has_as_many_starts_as_it_is_asked_for():
    envs = make_envs(8, settle_steps=0, num_starts=3)
    assert len({state.tobytes() for _ in range(3) for state in starts(envs)}) == 3
    envs.close()
    endless = make_envs(8, settle_steps=0, num_starts=None)
    assert len({state.tobytes() for _ in range(3) for state in starts(endless)}) == 24
    endless.close()


def test_starts_are_random_states_and_none_of_the_stored_ones(scene: LiberoEngineScene):
    envs = make_envs(4, settle_steps=0)
    for state in starts(envs, seed=0):
        assert np.abs(scene.scene.init_states[:, 1:] - state[1:]).max(axis=1).min() > 1e-4
    envs.close()


def test_objects_are_at_rest_after_the_settling_steps(scene: LiberoEngineScene):
    envs = make_envs(4)
    for state in starts(envs, seed=0):
        assert state[0] == pytest.approx(10 / 20)
        velocities = state[1 + scene.model.nq :]
        assert np.abs(velocities[9:]).max() < 0.1
    envs.close()


def test_a_new_episode_begins_elsewhere_by_itself():
    envs = make_envs(max_episode_steps=2, settle_steps=0, autoreset_mode=AutoresetMode.NEXT_STEP)
    first = starts(envs, seed=0)
    *_, truncated, info = envs.step(rest(envs))
    assert not truncated.any()
    _, rewards, terminated, truncated, info = envs.step(rest(envs))
    assert truncated.all()
    assert not terminated.any()
    assert not rewards.any()
    assert info["episode_length"].tolist() == [2, 2]
    _, _, _, truncated, info = envs.step(rest(envs))
    assert info["num_steps"].tolist() == [0, 0]
    assert not truncated.any()
    assert (np.array(envs.get_state())[:, 0] == 0).all()
    assert (np.array(envs.get_state()) != first).any(axis=1).all()
    envs.close()


def test_only_the_slots_of_a_mask_are_reset():
    envs = make_envs(2, settle_steps=0)
    before = starts(envs, seed=0)
    after = starts(envs, options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any()
    envs.close()


def test_a_start_does_not_satisfy_the_goal():
    envs = make_envs(8)
    envs.reset(seed=0)
    _, rewards, terminated, _, info = envs.step(rest(envs))
    assert not terminated.any()
    assert not rewards.any()
    assert not info["success"].any()
    envs.close()


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_spaces_time_limit_and_pictures_are_those_of_libero(chunk_size: int | None):
    arguments = {"cameras": ("agentview", "wrist"), "chunk_size": chunk_size}
    envs = make_envs(1, **arguments)
    libero = gym.make_vec(
        "Libero-v0",
        num_envs=1,
        suite=SUITE,
        task_ids=[TASK],
        image_size=32,
        detail="fast",
        autoreset_mode="NextStep",
        **arguments,
    )
    assert envs.observation_space == libero.observation_space
    assert envs.action_space == libero.action_space
    assert envs.max_episode_steps == libero.max_episode_steps == 220
    mine, theirs = envs.reset(seed=0)[0], libero.reset(seed=0)[0]
    assert mine in libero.observation_space
    assert mine["instruction"] == theirs["instruction"]
    mine, theirs = mine["image"][0].astype(float), theirs["image"][0].astype(float)
    assert 0 < np.abs(mine - theirs).mean() < 30  # the same room, with things elsewhere
    envs.close()
    libero.close()


def test_one_env_passes_gymnasiums_checker():
    env = gym.make("Isaac-v0", suite=SUITE, task_id=TASK, image_size=32, detail="fast")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*observation space minimum value|.*observation space maximum value")
        check_env(env.unwrapped, skip_render_check=True)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info["init_state_id"] == -1
    env.close()


@pytest.mark.parametrize("backend", ["auto", "mujoco"])
def test_a_cpu_suffices(backend: str):
    envs = make_envs(1, backend=backend)
    assert envs.backend == "mujoco"
    envs.close()


def test_asking_for_isaac_lab_says_what_to_convert_and_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    isaaclab = {"suite": "libero_goal", "task_id": 0, "backend": "isaaclab"}
    with pytest.raises(ValueError, match=r"needs scene_dir.*python -m vla_envs.isaac convert --suite libero_goal --out FOLDER"):
        gym.make_vec("Isaac-v0", num_envs=2, **isaaclab)
    with pytest.raises(SceneFormatError, match="holds no converted tasks"):
        IsaacEnv(2, scene_dir=tmp_path, **isaaclab)
    monkeypatch.setattr("vla_envs.isaac.isaaclab.load_task", lambda *_: None)
    monkeypatch.setattr("vla_envs.isaac.isaaclab.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"Python 3\.12: pip install isaaclab==3\.0\.0"):
        gym.make("Isaac-v0", scene_dir=tmp_path, **isaaclab)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "policy/image"}, "image is for a task of Isaac Lab's own: say which, with task='Isaac-...'"),
        ({"task": "Isaac-Cartpole-Camera"}, "needs an instruction and the name of a picture"),
        ({"settle_steps": 0}, "settle_steps is 10 in converted tasks, got 0"),
        ({"detail": "fast"}, "detail is 'full' in converted tasks, got 'fast'"),
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        (
            {"state_keys": ("robot0_eef_pos",)},
            r"state_keys is for the backends 'mujoco' and 'warp', got \('robot0_eef_pos',\) for 'isaaclab'",
        ),
        ({"control": "osc_absolute"}, "control is for the backends 'mujoco' and 'warp', got 'osc_absolute' for 'isaaclab'"),
        ({"depth": ("agentview",)}, r"depth is for the backends 'mujoco' and 'warp', got \('agentview',\) for 'isaaclab'"),
        ({"cameras": ("birdview",)}, r"cameras of converted tasks are \('agentview', 'wrist'\), got \('birdview',\)"),
        ({"image_size": (64, 96)}, r"pictures of converted tasks are square, and all of one size, got image_size=\(64, 96\)"),
        ({"num_starts": 50}, "num_starts of converted tasks is what `convert --num-starts` was given"),
    ],
)
def test_what_isaac_lab_cannot_play_is_refused_before_anything_starts(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        IsaacEnv(**{"backend": "isaaclab", "scene_dir": tmp_path} | arguments)


def test_what_is_for_isaac_lab_is_refused_elsewhere():
    with pytest.raises(ValueError, match="task is for backend='isaaclab', got backend='mujoco'"):
        IsaacEnv(1, backend="mujoco", task="Isaac-Cartpole-Camera")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "isaacgym"}, "backend must be one of 'auto', 'isaaclab', 'mujoco', 'warp', got 'isaacgym'"),
        ({"num_starts": 0}, "num_starts must be an integer of at least 1, got 0"),
        ({"task_id": 10}, r"libero_spatial has tasks 0\.\.9, got task_id=10"),
        ({"task_id": None}, r"libero_spatial has tasks 0\.\.9, got task_id=None"),
        ({"task_id": [0]}, r"libero_spatial has tasks 0\.\.9, got task_id=\[0\]"),
        ({"task_id": -1}, r"libero_spatial has tasks 0\.\.9, got task_id=-1"),
        ({"suite": "libero_spacial"}, "unknown suite 'libero_spacial': LIBERO has libero_spatial"),
        ({"cameras": ("top",)}, "cameras must be any of"),
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        IsaacEnv(**{"suite": SUITE, "task_id": TASK} | arguments)


@pytest.mark.parametrize("option", ["task_id", "init_state_id"])
def test_neither_task_nor_stored_state_can_be_chosen_at_a_reset(option: str):
    envs = make_envs()
    with pytest.raises(ValueError, match=f"unknown reset option '{option}': this env takes 'reset_mask'"):
        envs.reset(options={option: 0})
    envs.close()


def test_a_scene_exported_elsewhere_is_enough(tmp_path: Path):
    export_scenes(SUITE, [TASK], detail="fast", folder=tmp_path)
    envs, twin = make_envs(scene_dir=tmp_path, settle_steps=0), make_envs(settle_steps=0)
    np.testing.assert_array_equal(starts(envs, seed=0), starts(twin, seed=0))
    with pytest.raises(ValueError, match=r"has tasks 3, got task_id=0"):
        make_envs(scene_dir=tmp_path, task_id=0)
    envs.close()
    twin.close()


def test_it_says_how_it_simulates_as_libero_does() -> None:
    envs = make_envs(1, backend="mujoco", control="osc_absolute", sleep=True)
    expected = {"engine": "mujoco", "detail": "fast", "settle_steps": 10, "control": "osc_absolute", "sleep": True}
    assert envs.simulation == expected
    envs.close()
