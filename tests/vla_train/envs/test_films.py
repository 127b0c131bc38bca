"""What a shard of LIBERO shows of filmed slots, beside the env itself."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from vla_train.config import EnvConfig
from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvShard
from vla_train.types import EpisodeSpec

LIBERO: dict[str, Any] = {"suite": "libero_spatial", "task_ids": [0], "detail": "fast", "image_size": 32}
SPECS = [EpisodeSpec(group_id=0, sample_id=0, task_id=0, init_state_id=state, seed=0) for state in range(3)]


@pytest.fixture(scope="module")
def shard() -> Iterator[EnvShard]:
    config = EnvConfig(kwargs={name: str(value) for name, value in LIBERO.items()}, envs_per_worker=3, max_episode_steps=6)
    shard = make_env_shard(config, chunk_size=4)
    yield shard
    shard.close()


def test_a_filmed_slot_shows_each_action_as_the_env_observes_it_one_by_one(shard: EnvShard):
    """Slot 0 is filmed, slot 1 shows its end alone, slot 2 nothing; the second chunk is cut short by the time limit."""
    single = gym.make("Libero-v0", **{name: value for name, value in LIBERO.items() if name != "task_ids"}, time_limit=6)
    seen = [single.reset(options={"init_state_id": 0})[0]["image"]]
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 7)).astype(np.float32)
    for action in actions[:, 0].reshape(-1, 7)[:6]:
        seen.append(single.step(action)[0]["image"])
    single.close()
    start = shard.reset([0, 1, 2], SPECS, ("image",))
    np.testing.assert_array_equal(start.observations["image"][0], seen[0])
    film = {0: True, 1: False}
    first = shard.step(actions[0], np.ones(3, bool), ("image",), film)
    second = shard.step(actions[1], np.ones(3, bool), ("image",), film)
    assert {slot: len(frames) for slot, frames in first.frames.items()} == {0: 4}
    assert {slot: len(frames) for slot, frames in second.frames.items()} == {0: 2, 1: 1}
    np.testing.assert_array_equal(np.concatenate([first.frames[0], second.frames[0]]), seen[1:])
    np.testing.assert_array_equal(second.frames[1][0], second.observations["image"][1])


def test_nobody_is_filmed_unless_asked_for(shard: EnvShard):
    shard.reset([0, 1, 2], SPECS, ("image",))
    result = shard.step(np.zeros((3, 4, 7), np.float32), np.ones(3, bool), ("image",))
    assert result.frames == {}
    assert shard.env.unwrapped.render_every == (None, None, None)  # type: ignore[attr-defined]
