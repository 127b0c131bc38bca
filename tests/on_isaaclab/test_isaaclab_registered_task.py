"""A task of Isaac Lab's own through the adapter: `Isaac-Cartpole-Camera`, with the cart that Newton ships."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pxr import Usd

from vla_envs.isaac.lab.env import IsaacLabEnv

NAME, INSTRUCTION = "Isaac-Cartpole-Camera", "keep the pole upright"


@pytest.fixture(scope="module")
def cart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the cart, as the task wants it: with a default prim."""
    spec = find_spec("newton")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "examples" / "assets" / "cartpole_single_pendulum.usda"
    stage = Usd.Stage.Open(str(source))
    stage.SetDefaultPrim(next(iter(stage.GetPseudoRoot().GetChildren())))
    file = tmp_path_factory.mktemp("cart") / "cartpole.usd"
    stage.Export(str(file))
    return file


def make(cart: Path, **options: object) -> IsaacLabEnv:
    def change(cfg: Any) -> None:
        cfg.scene.robot.spawn.usd_path = str(cart)
        cfg.observations.policy.image.params |= {"frame_stack": 1, "normalize": False}

    arguments = {"task": NAME, "instruction": INSTRUCTION, "image": "policy", "cfg": change, "device": "cpu"} | options
    return gym.make_vec("Isaac-v0", num_envs=3, backend="isaaclab", **arguments)


@pytest.fixture(scope="module")
def env(cart: Path) -> Iterator[IsaacLabEnv]:
    env = make(cart, autoreset_mode="Disabled", chunk_size=2, max_episode_steps=5)
    yield env
    env.close()


def test_it_observes_a_picture_and_the_instruction(env: IsaacLabEnv):
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert set(observation) == {"image", "instruction"}
    assert observation["instruction"] == (INSTRUCTION,) * 3
    assert observation["image"].dtype == np.uint8
    assert observation["image"].std() > 1
    assert not env.metadata["reports_success"]
    assert info["task_id"].tolist() == [0, 0, 0]


def test_equal_seeds_give_equal_starts_and_masks_hold(env: IsaacLabEnv):
    observation, _ = env.reset(seed=[4, 4, 5])
    np.testing.assert_array_equal(observation["image"][0], observation["image"][1])
    assert (observation["image"][0] != observation["image"][2]).any()
    again, _ = env.reset(seed=[5, None, None], options={"reset_mask": np.array([True, False, False])})
    np.testing.assert_array_equal(again["image"][0], observation["image"][2])
    np.testing.assert_array_equal(again["image"][1:], observation["image"][1:])


def test_time_runs_out_inside_a_chunk_and_slots_wait(env: IsaacLabEnv):
    env.reset(seed=0)
    actions = np.zeros(env.action_space.shape, np.float32)
    rewards = []
    for _ in range(3):
        final, reward, terminated, truncated, info = env.step(actions)
        rewards.append(reward)
    assert info["num_steps"].tolist() == [1, 1, 1]
    assert (truncated | terminated).all()
    np.testing.assert_allclose(info["episode_return"], np.sum(rewards, axis=0))
    waiting, *_, info = env.step(actions)
    assert info["num_steps"].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(waiting["image"], final["image"])


def test_wrong_names_are_refused_and_leave_the_process_free(cart: Path, env: IsaacLabEnv):
    env.close()
    for changed, message in (
        ({"image": "policy/picture"}, "the env observes no 'policy/picture': it has policy"),
        ({"success": "goal"}, "the env has no termination 'goal'"),
        ({"task": "Isaac-Nothing"}, "there is no Isaac Lab task 'Isaac-Nothing'"),
        ({"cfg": {"scene.grounds": None}}, "configuration has no 'scene.grounds'"),
        ({"image": None}, "needs an instruction and the name of a picture"),
    ):
        with pytest.raises(ValueError, match=message):
            make(cart, **changed)
