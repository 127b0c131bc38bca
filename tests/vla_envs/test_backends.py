"""What every env does whatever simulates it: the same tests for each env and each engine, at the size of a CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, almost_done, loaded_scene
from gymnasium.vector import AutoresetMode

from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.cameras import Camera
from vla_envs.vector.robot_state import ROBOT_STATE

BACKENDS = {
    "isaac mujoco": ("Isaac-v0", {"backend": "mujoco"}),
    "isaac warp": ("Isaac-v0", {"backend": "warp", "device": "cpu"}),
    "libero mujoco": ("Libero-v0", {"engine": "mujoco"}),
    "libero warp": ("Libero-v0", {"engine": "warp", "device": "cpu"}),
}
SUITE, TASK = BOWL_ON_PLATE
SURFACES: dict[str, Any] = {
    "cameras": ("birdview", "robot0_eye_in_hand"),
    "image_size": {"wrist": (24, 32), "birdview": 40},
    "depth": ("birdview", "wrist"),
    "segmentation": ("birdview", "wrist"),
}
Make = Callable[..., ChunkedVectorEnv]


@pytest.fixture(params=list(BACKENDS))
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes envs of one backend, without settling and cameras unless asked for, and closes them."""
    if "warp" in request.param:
        pytest.importorskip("mujoco_warp")
    env_id, chosen = BACKENDS[request.param]
    loaded_scene(SUITE, TASK)
    made = []

    def make_envs(num_envs: int = 2, **arguments: Any) -> ChunkedVectorEnv:
        usual = {"suite": SUITE, "task_id": TASK, "detail": "fast", "cameras": (), "image_size": 32, "settle_steps": 0}
        envs = gym.make_vec(env_id, num_envs=num_envs, **(chosen | usual | {"chunk_size": 2} | arguments))
        assert isinstance(envs, ChunkedVectorEnv)
        made.append(envs)
        return envs

    yield make_envs
    for envs in made:
        envs.close()


def actions(envs: ChunkedVectorEnv, value: float = 0.3) -> np.ndarray:
    """The same motion for all slots, gripper open."""
    chunk = np.full(envs.action_space.shape, value, np.float32)
    chunk[..., -1] = -1
    return chunk


def success_states(envs: ChunkedVectorEnv) -> list[np.ndarray]:
    """States in which the bowl falls onto the plate."""
    return [almost_done(SUITE, TASK, state) for state in envs.get_state()]


def test_observations_and_actions_are_of_the_spaces(make: Make):
    envs = make(2, cameras=("agentview", "wrist"))
    observation, info = envs.reset(seed=0)
    assert observation in envs.observation_space
    assert observation["image"].shape == observation["wrist_image"].shape == (2, 32, 32, 3)
    assert all(picture.std() > 10 for picture in (*observation["image"], *observation["wrist_image"]))
    assert info["task_id"].tolist() == [TASK] * 2
    assert all(info["renderer"])
    observation, rewards, terminated, truncated, info = envs.step(actions(envs))
    assert observation in envs.observation_space
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
    assert info["num_steps"].tolist() == [2, 2]
    assert envs.step(actions(envs)[:, :1])[-1]["num_steps"].tolist() == [1, 1], "a chunk may be shorter"


def test_a_reset_with_a_mask_leaves_the_other_slots_as_they_are(make: Make):
    """Though those that begin may be settled among them."""
    usual = {"autoreset_mode": AutoresetMode.DISABLED, "settle_steps": 1, "chunk_size": 1}
    envs, twin = make(3, cameras=("agentview",), **usual), make(3, **usual)
    twin.reset(seed=0)
    twin.step(actions(twin))
    envs.reset(seed=0)
    played, *_ = envs.step(actions(envs))
    states = envs.get_state()
    again, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
    for slot in (0, 2):
        np.testing.assert_array_equal(envs.get_state()[slot], states[slot])
        np.testing.assert_array_equal(again["image"][slot], played["image"][slot])
        np.testing.assert_array_equal(again["state"][slot], played["state"][slot])
    assert 0 < envs.get_state()[1][0] < states[1][0]
    later, undisturbed = envs.step(actions(envs))[0]["state"], twin.step(actions(twin))[0]["state"]
    np.testing.assert_allclose(later[[0, 2]], undisturbed[[0, 2]], atol=1e-5)


def test_equal_seeds_are_equal_starts_in_any_slot_and_at_any_time(make: Make):
    """What the episodes of a GRPO group need."""
    envs = make(3, settle_steps=1, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=[7, 8, 7])
    first = envs.get_state()
    np.testing.assert_array_equal(first[0], first[2])
    assert (first[0] != first[1]).any()
    envs.step(actions(envs))
    envs.reset(seed=[None, 7, None], options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(envs.get_state()[1], first[0])


def test_equal_starts_and_actions_are_equal_episodes_up_to_rounding(make: Make):
    envs = make(2)
    envs.reset(seed=[3, 3])
    observation, *_ = envs.step(actions(envs))
    np.testing.assert_allclose(observation["state"][0], observation["state"][1], atol=1e-5)


def test_the_time_limit_truncates_in_the_middle_of_a_chunk_and_the_next_step_begins_anew(make: Make):
    envs = make(2, max_episode_steps=3, autoreset_mode=AutoresetMode.NEXT_STEP)
    envs.reset(seed=0)
    *_, truncated, info = envs.step(actions(envs))
    assert not truncated.any()
    _, rewards, terminated, truncated, info = envs.step(actions(envs))
    assert (info["num_steps"].tolist(), truncated.tolist()) == ([1, 1], [True, True])
    assert not terminated.any()
    assert not rewards.any()
    assert info["episode_length"].tolist() == [3, 3]
    *_, truncated, info = envs.step(actions(envs))
    assert (info["num_steps"].tolist(), truncated.tolist()) == ([0, 0], [False, False])
    assert [state[0] for state in envs.get_state()] == [0, 0]


def test_with_same_step_the_last_observation_comes_beside_the_first_of_the_next_episode(make: Make):
    envs = make(2, max_episode_steps=2, autoreset_mode=AutoresetMode.SAME_STEP)
    begun, _ = envs.reset(seed=0)
    observation, _, _, truncated, info = envs.step(actions(envs))
    assert truncated.all()
    assert info["final_info"]["num_steps"].tolist() == [2, 2]
    for slot in range(2):
        last = info["final_obs"][slot]["state"]
        assert np.abs(last[:3] - begun["state"][slot][:3]).max() > 1e-3
        assert np.abs(last[:3] - observation["state"][slot][:3]).max() > 1e-3
    assert [state[0] for state in envs.get_state()] == [0, 0]


def test_a_slot_that_is_over_stands_still_while_the_others_play(make: Make):
    envs = make(2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.set_state([success_states(envs)[0], envs.get_state()[1]])
    while True:
        _, rewards, terminated, _, info = envs.step(actions(envs, 0.0))
        if terminated[0]:
            break
        assert envs.get_state()[0][0] < 1.5, "the bowl fell for more than a second"
    assert (rewards.tolist(), info["success"].tolist()) == ([1.0, 0.0], [True, False])
    state = envs.get_state()
    _, rewards, terminated, _, info = envs.step(actions(envs, 0.0))
    np.testing.assert_array_equal(envs.get_state()[0], state[0])
    assert envs.get_state()[1][0] > state[1][0]
    assert (rewards.tolist(), terminated.tolist(), info["num_steps"].tolist()) == ([0, 0], [False, False], [0, 2])


def test_a_state_that_is_set_is_the_state_that_is_there(make: Make):
    envs = make(2)
    envs.reset(seed=0)
    states = envs.get_state()
    observation = envs.set_state(states[::-1])
    for mine, given in zip(envs.get_state(), states[::-1], strict=True):
        np.testing.assert_allclose(mine, given, atol=1e-6)
    assert observation["state"].shape == (2, 8)


def test_the_robots_state_is_observed_under_the_keys_that_are_asked_for(make: Make):
    """In the state that is set, in the last of an episode and in the first of the next."""
    keys = tuple(ROBOT_STATE)
    envs = make(2, state_keys=keys[::-1], max_episode_steps=2, autoreset_mode=AutoresetMode.SAME_STEP)
    begun, _ = envs.reset(seed=0)
    assert begun in envs.observation_space
    assert set(begun) == {"state", "instruction", *keys}
    osc, states = loaded_scene(SUITE, TASK).scene.osc, envs.get_state()
    num_positions = loaded_scene(SUITE, TASK).model.nq
    for state in states:
        state[1 + osc.gripper_qpos] = [0.021, -0.013]
        state[1 + num_positions + osc.arm_dofs] = np.linspace(-0.3, 0.3, 7)
    seen = envs.set_state(states)
    for slot, state in enumerate(states):
        joints = state[1 + osc.arm_qpos]
        np.testing.assert_allclose(seen["robot0_joint_pos"][slot], joints, atol=1e-6)
        np.testing.assert_allclose(seen["robot0_joint_pos_cos"][slot], np.cos(joints), atol=1e-6)
        np.testing.assert_allclose(seen["robot0_joint_pos_sin"][slot], np.sin(joints), atol=1e-6)
        np.testing.assert_allclose(seen["robot0_joint_vel"][slot], np.linspace(-0.3, 0.3, 7), atol=1e-6)
        np.testing.assert_allclose(seen["robot0_gripper_qpos"][slot], [0.021, -0.013], atol=1e-6)
        np.testing.assert_allclose(seen["robot0_eef_pos"][slot], seen["state"][slot, :3], atol=1e-6)
    observation, *_, info = envs.step(actions(envs))
    assert observation in envs.observation_space
    for slot, last in enumerate(info["final_obs"]):
        assert last in envs.single_observation_space
        np.testing.assert_array_equal(last["robot0_eef_pos"], last["state"][:3])
        np.testing.assert_array_equal(last["robot0_gripper_qpos"], last["state"][6:])
        assert np.abs(last["robot0_gripper_qvel"]).max() > 1e-3
        assert np.abs(last["robot0_joint_vel"]).max() > 1e-2
        np.testing.assert_array_equal(observation["robot0_joint_vel"][slot], 0.0)


@pytest.fixture(scope="module")
def drawn_by_opengl(opengl: None) -> dict[str, Any]:
    """What `SURFACES` asks for of two initial states, and the matrices of the cameras."""
    states = list(loaded_scene(SUITE, TASK).scene.init_states[[0, 20]])
    envs = gym.make_vec("Libero-v0", num_envs=2, suite=SUITE, task_id=TASK, detail="fast", settle_steps=0, **SURFACES)
    envs.reset()
    drawn = envs.set_state(states) | {name: matrices_of(envs, name) for name in SURFACES["image_size"]}
    envs.close()
    return drawn | {"states": states}


def matrices_of(envs: Any, camera: str) -> tuple[np.ndarray, np.ndarray]:
    return envs.camera_intrinsics(camera), envs.camera_extrinsics(camera)


def test_cameras_of_any_size_give_distances_and_bodies_and_say_where_they_are(make: Make, drawn_by_opengl: dict[str, Any]):
    """As OpenGL draws them, but for edges."""
    envs = make(2, **SURFACES)
    begun, _ = envs.reset(seed=0)
    assert begun in envs.observation_space
    seen = envs.set_state(drawn_by_opengl["states"])
    assert seen in envs.observation_space
    assert len(envs.body_names(1)) == loaded_scene(SUITE, TASK).model.nbody
    for name in SURFACES["image_size"]:
        difference = np.abs(seen[f"{name}_depth"] - drawn_by_opengl[f"{name}_depth"])
        assert np.quantile(difference, 0.9) < 1e-4
        assert (seen[f"{name}_segmentation"] == drawn_by_opengl[f"{name}_segmentation"]).mean() > 0.95
        for mine, theirs in zip(matrices_of(envs, name), drawn_by_opengl[name], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_cameras_of_ones_own_are_drawn_or_refused_by_name(make: Make, opengl: None, request: pytest.FixtureRequest):
    camera = Camera(name="top", position=(0.2, 0.3, 2.0), target=(0.0, 0.0, 0.9))
    if "warp" in request.node.name:
        with pytest.raises(ValueError, match="Warp draws the scene's own cameras only, got a Camera 'top': 'mujoco' draws it"):
            make(2, cameras=(camera,))
    else:
        observation, _ = make(2, cameras=(camera,)).reset(seed=0)
        assert observation["top_image"].std() > 10


def test_what_is_wrong_with_actions_is_said_before_anything_moves(make: Make):
    envs = make(2)
    envs.reset(seed=0)
    states = envs.get_state()
    wrong = actions(envs)
    wrong[1, 0, 3] = np.nan
    with pytest.raises(ValueError, match="actions must be finite, got nan"):
        envs.step(wrong)
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 2, 7\), got \(2, 7\)"):
        envs.step(wrong[:, 0])
    for mine, before in zip(envs.get_state(), states, strict=True):
        np.testing.assert_array_equal(mine, before)


def test_tensors_hold_what_arrays_hold(make: Make):
    torch = pytest.importorskip("torch")
    observations = []
    for arrays in ("numpy", "torch"):
        surfaces = {"depth": ("agentview",), "segmentation": ("agentview",)}
        envs = make(2, cameras=("agentview",), arrays=arrays, state_keys=("robot0_eef_mat",), **surfaces)
        envs.reset(seed=0)
        observations.append(envs.step(actions(envs) if arrays == "numpy" else torch.from_numpy(actions(envs)))[0])
        assert envs.camera_extrinsics("agentview").shape == (2, 4, 4)
    floats = dict.fromkeys(("state", "robot0_eef_mat", "agentview_depth"), torch.float32)
    for key, dtype in {"image": torch.uint8, "agentview_segmentation": torch.int32, **floats}.items():
        assert observations[1][key].dtype == dtype
        np.testing.assert_array_equal(observations[1][key].numpy(), observations[0][key])


def test_slots_of_different_tasks_need_libero(make: Make):
    with pytest.raises((ValueError, TypeError), match="task_id"):
        make(2, task_id=[0, 1])
