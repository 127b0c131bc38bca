"""Observations of any env become arrays by key."""

import gymnasium as gym
import numpy as np
import pytest

from vla_train.config import EnvConfig
from vla_train.envs.observations import array_specs, has_instruction, read_array, read_instruction
from vla_train.types import ArraySpec

IMAGE = gym.spaces.Box(0, 255, (4, 5, 3), np.uint8)
STATE = gym.spaces.Box(-1, 1, (7,), np.float32)


def test_a_nested_observation_is_named_by_its_path_and_the_main_image_by_its_role() -> None:
    space = gym.spaces.Dict(
        {
            "pixels": gym.spaces.Dict({"front": IMAGE, "wrist": IMAGE}),
            "agent_pos": STATE,
            "phase": gym.spaces.Discrete(3),
            "instruction": gym.spaces.Text(9),
        }
    )
    image, state, phase = ArraySpec((4, 5, 3), "uint8"), ArraySpec((7,), "float32"), ArraySpec((), "int64")
    specs = array_specs(space, image_key="pixels/front")
    assert specs == {"agent_pos": state, "phase": phase, "image": image, "pixels/wrist": image}
    observation = space.sample()
    np.testing.assert_array_equal(read_array(observation, "image", image_key="pixels/front"), observation["pixels"]["front"])
    for key, inner in (("pixels/wrist", observation["pixels"]["wrist"]), ("agent_pos", observation["agent_pos"])):
        np.testing.assert_array_equal(read_array(observation, key, image_key="pixels/front"), inner)


def test_a_key_with_a_slash_of_its_own_is_found() -> None:
    observation = {"observation/image": np.ones(3), "observation/arm": {"state": np.zeros(2)}}
    assert read_array(observation, "image", image_key="observation/image").sum() == 3
    assert read_array(observation, "observation/arm/state", image_key="image").shape == (2,)


def test_an_image_that_is_not_there_is_refused_and_another_is_not_taken_for_it() -> None:
    space = gym.spaces.Dict({"image": IMAGE, "wrist": IMAGE})
    assert list(array_specs(space, image_key="wrist")) == ["image"]
    assert list(array_specs(gym.spaces.Dict({"agent_pos": STATE}), image_key="image")) == ["agent_pos"]
    with pytest.raises(ValueError, match=r"no image 'camera' in the observation \(wrist\): set env.image_key"):
        array_specs(space, image_key="camera")


@pytest.mark.parametrize(("space", "key"), [(IMAGE, "image"), (STATE, "state")])
def test_a_plain_array_is_an_image_if_it_looks_like_one_and_else_the_state(space: gym.Space, key: str) -> None:
    assert list(array_specs(space, image_key="image")) == [key]
    np.testing.assert_array_equal(read_array(space.low, key, image_key="image"), space.low)


def test_an_instruction_that_is_no_text_is_an_array_like_any_other() -> None:
    tokens = gym.spaces.Dict({"instruction": gym.spaces.MultiDiscrete([9, 9]), "agent_pos": STATE})
    assert not has_instruction(tokens, EnvConfig())
    assert has_instruction(tokens, EnvConfig(instruction="go on"))
    assert read_instruction(tokens.sample(), "go on") == "go on"
    for said in (3, np.int64(3), np.array([1, 2]), np.array([[1, 2], [3, 4]]), None):
        assert read_instruction({"instruction": said}, None) is None
    assert set(array_specs(tokens, image_key="image")) == {"instruction", "agent_pos"}
    texts = gym.spaces.Dict({"instruction": gym.spaces.Text(9)})
    assert has_instruction(texts, EnvConfig())
    with pytest.raises(ValueError, match=r"Some-v0 says itself what to do: leave env\.instruction out"):
        has_instruction(texts, EnvConfig(id="Some-v0", instruction="go on"))
    for said in ("open it", ("open it", ""), np.array(["open it", "close it"])):
        assert read_instruction({"instruction": said}, "go on") is said
