"""LiberoEnv in the hands of others: Gymnasium's renderers, tensors, specs and shared memory."""

import copy
import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, loaded_scene, make_envs, still
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from vla_envs.isaac.env import IsaacEnv
from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.instruction import Instruction
from vla_envs.vector.options import EnvOptions

pytestmark = pytest.mark.usefixtures("opengl")

FAST: dict[str, Any] = {"task_id": 0, "detail": "fast", "image_size": 32}


@pytest.fixture(autouse=True, scope="module")
def scene() -> None:
    loaded_scene(*BOWL_ON_PLATE)


@pytest.mark.parametrize("env_id", ["Libero-v0", "Isaac-v0"])
def test_a_list_of_pictures_is_what_has_been_rendered_since_the_last_call(env_id: str):
    env = gym.make(env_id, **FAST, render_mode="rgb_array_list")
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(7))
    pictures = env.render()
    assert [picture.shape for picture in pictures] == [(32, 32, 3)] * 3
    env.close()


def test_a_person_may_watch(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.warns(UserWarning, match="HumanRendering"):
        env = gym.make("Libero-v0", **FAST, render_mode="human")
    assert isinstance(env, gym.wrappers.HumanRendering)
    env.reset(seed=0)
    env.step(np.zeros(7))
    env.close()


def test_videos_of_single_and_vector_envs_are_recorded(tmp_path: Path):
    pytest.importorskip("moviepy")
    one = gym.make("Libero-v0", **FAST, render_mode="rgb_array", time_limit=2)
    two = make_envs(2, max_episode_steps=2, cameras=("agentview",), image_size=32, render_mode="rgb_array")
    env = gym.wrappers.RecordVideo(one, str(tmp_path / "one"), disable_logger=True)
    envs = gym.wrappers.vector.RecordVideo(two, str(tmp_path / "two"), disable_logger=True)
    for recorded in (env, envs):
        recorded.reset(seed=0)
        for _ in range(2):
            recorded.step(np.zeros(recorded.action_space.shape, np.float32))
        recorded.close()
    for folder, shape in (("one", (32, 32, 3)), ("two", (32, 64, 3))):
        (file,) = (tmp_path / folder).glob("*.mp4")
        pictures = list(iio.imiter(file))
        assert len(pictures) >= 3  # moviepy repeats one now and then
        assert pictures[0].shape == shape


def test_numbers_of_a_single_envs_info_are_pythons_own():
    env = gym.make("Libero-v0", **FAST, time_limit=1)
    _, info = env.reset(seed=0)
    assert {type(value) for value in info.values()} == {int, str}
    info = env.step(np.zeros(7))[-1]
    assert {type(value) for value in info.values()} == {int, bool, float}
    env.close()


@pytest.mark.skipif(not (find_spec("array_api_compat") and find_spec("torch")), reason="needs gymnasium[torch]")
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_all_that_vector_envs_give_can_be_tensors_and_texts_stay_texts(mode: AutoresetMode):
    import torch

    envs = gym.wrappers.vector.NumpyToTorch(make_envs(2, max_episode_steps=1, cameras=("agentview",), autoreset_mode=mode))
    instructions = (envs.unwrapped.instructions[0],) * 2
    observation, info = envs.reset(seed=0)
    assert observation["image"].dtype == torch.uint8
    assert observation["instruction"] == instructions
    assert info["renderer"].tolist() == [envs.unwrapped.renderer] * 2
    states = [state.copy() for state in envs.unwrapped.get_state()]
    states[1][-5:] = 1e9
    envs.unwrapped.set_state(states)
    observation, _, _, truncated, info = envs.step(torch.zeros(envs.action_space.shape))
    assert truncated.tolist() == [True, True]
    assert observation["instruction"] == instructions
    ended = info["final_info"] if mode == AutoresetMode.SAME_STEP else info
    assert ended["success"].dtype == torch.bool
    assert ended["fault"][0] is None
    assert "diverged" in ended["fault"][1]
    if mode == AutoresetMode.SAME_STEP:
        assert [final["instruction"] for final in info["final_obs"]] == list(instructions)
        assert all(final["image"].dtype == torch.uint8 for final in info["final_obs"])
    envs.close()


@pytest.mark.skipif(not (find_spec("array_api_compat") and find_spec("torch")), reason="needs gymnasium[torch]")
def test_all_that_a_single_env_gives_can_be_tensors_and_texts_stay_texts():
    import torch

    env = gym.wrappers.NumpyToTorch(gym.make("Libero-v0", **FAST, time_limit=1))
    observation, info = env.reset(seed=0)
    assert observation["image"].dtype == torch.uint8
    assert info["renderer"] == env.unwrapped.renderer
    observation, *_, info = env.step(torch.zeros(7))
    assert info["success"].dtype == torch.bool
    assert observation["instruction"] == env.unwrapped.instructions[0]
    env.close()


def test_how_an_env_was_made_can_be_written_as_json_and_made_from_it():
    arguments = {"detail": "fast", "cameras": (), "autoreset_mode": AutoresetMode.DISABLED, "task_ids": np.array([0, 1])}
    envs = gym.make_vec("Libero-v0", num_envs=2, **arguments)
    text = envs.spec.to_json()
    assert json.loads(text)["kwargs"]["autoreset_mode"] == "Disabled"
    envs.close()
    again = gym.make_vec(EnvSpec.from_json(text))
    assert (again.num_envs, again.task_ids, again.autoreset_mode) == (2, (0, 1), AutoresetMode.DISABLED)
    again.close()


def test_how_a_single_env_was_made_can_be_written_as_json_and_made_from_it(tmp_path: Path):
    env = gym.make("Libero-v0", task_id=np.int64(3), cameras=(), detail="fast", time_limit=7)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert (again.unwrapped.task_ids, again.unwrapped.max_episode_steps) == ((3,), 7)
    env.close()
    again.close()


@pytest.mark.parametrize("copies", [True, False])
def test_instructions_come_through_shared_memory(copies: bool):
    def make(task_id: int) -> Any:
        return lambda: gym.make("Libero-v0", task_id=task_id, detail="fast", cameras=(), time_limit=2)

    envs = AsyncVectorEnv([make(0), make(1)], shared_memory=True, context="spawn", copy=copies)
    expected = [gym.make("Libero-v0", task_id=task_id, cameras=()).unwrapped.instructions[task_id] for task_id in (0, 1)]
    observation, _ = envs.reset(seed=0)
    assert list(observation["instruction"]) == expected
    assert isinstance(observation["instruction"], tuple) == copies
    for _ in range(3):
        observation, *_ = envs.step(np.zeros((2, 7), np.float32))
        assert list(observation["instruction"]) == expected
    envs.close()


def test_texts_in_shared_memory_are_those_written_last_and_a_copy_is_not():
    space = Instruction(max_length=20, charset=" abcdé")
    memory = gym.vector.utils.create_shared_memory(space, n=2)
    texts = gym.vector.utils.read_from_shared_memory(space, memory, n=2)
    for slot, text in enumerate(("a bad cab", "é")):
        gym.vector.utils.write_to_shared_memory(space, slot, text, memory)
    assert (len(texts), texts[0], texts[1:], repr(texts)) == (2, "a bad cab", ("é",), "('a bad cab', 'é')")
    kept = copy.deepcopy(texts)
    gym.vector.utils.write_to_shared_memory(space, 0, "d", memory)
    assert texts == ("d", "é")
    assert kept == ("a bad cab", "é")
    assert hash(texts) == hash(("d", "é"))


def test_a_simulation_that_diverges_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    envs = make_envs(2)
    envs.reset(seed=0)
    states = [state.copy() for state in envs.get_state()]
    for state in states:
        state[-5:] = 1e9
    envs.set_state(states)
    info = envs.step(still(envs))[-1]
    assert all("diverged" in fault for fault in info["fault"])
    assert list(tmp_path.iterdir()) == []
    assert "MuJoCo: Nan, Inf or huge value" in caplog.text
    envs.close()


def test_settled_starts_are_kept_by_their_size_and_the_latest_used_stays(monkeypatch: pytest.MonkeyPatch):
    envs = make_envs(1, cameras=("agentview",), settle_steps=0)
    envs.reset(seed=0, options={"init_state_id": 0})
    (one,) = envs._settled.values()
    assert one.num_bytes > envs._engine.pictures()["agentview"].nbytes > 0
    monkeypatch.setattr("vla_envs.vector.settled.SETTLED_BYTES", 3 * one.num_bytes)
    for init_state_id in (1, 2, 0, 3, 4):
        envs.reset(options={"init_state_id": init_state_id})
    assert list(envs._settled) == [(0, 0), (0, 3), (0, 4)]
    envs.close()


@pytest.mark.parametrize("env_class", [LiberoEnv, IsaacEnv])
def test_every_option_is_named_with_its_default_and_explained_by_help(env_class: type):
    parameters = inspect.signature(env_class).parameters
    defaults = EnvOptions()
    for name in inspect.signature(EnvOptions).parameters:
        assert parameters[name].default == getattr(defaults, name)
    assert not [parameter for parameter in parameters.values() if parameter.kind is parameter.VAR_KEYWORD]
    for name in parameters:
        assert env_class.__doc__.count(f"\n    {name}: ") == 1, name
