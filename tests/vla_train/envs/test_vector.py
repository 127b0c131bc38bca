"""What a vector env must not return is refused, whatever it was asked for."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from pipeline_envs import ChunkedDriftEnv, drift_config, make_spec

from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvFaultError


def test_images_of_another_type_are_refused_at_a_reset_too(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ChunkedDriftEnv._batch

    def scaled(env: ChunkedDriftEnv) -> dict[str, object]:
        observation = batch(env)
        return {**observation, "image": observation["image"].astype(np.float32) / 255}

    shard = make_env_shard(drift_config(id="pipeline_envs:ChunkedDrift-v0"), chunk_size=3)
    monkeypatch.setattr(ChunkedDriftEnv, "_batch", scaled)
    with pytest.raises(EnvFaultError, match=r"uint8 of shape .* got float32"):
        shard.reset(range(3), [make_spec(group_id, init_state_id=0) for group_id in range(3)], ["image"])


def test_numbers_are_looked_at_in_the_slots_that_play_however_these_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, broken = ChunkedDriftEnv._batch, [1]

    def holed(env: ChunkedDriftEnv) -> dict[str, object]:
        observation = batch(env)
        observation["position"][broken] = np.nan
        return observation

    monkeypatch.setattr(ChunkedDriftEnv, "_batch", holed)
    shard = make_env_shard(drift_config(id="pipeline_envs:ChunkedDrift-v0"), chunk_size=3)
    specs = [make_spec(group_id, init_state_id=0) for group_id in range(3)]
    for slots in ([0, 1, 2], (0, 1, 2), (1,)):  # a worker hands over a tuple
        with pytest.raises(EnvFaultError, match="position holds NaN"):
            shard.reset(slots, specs[: len(slots)], ["position"])
    assert shard.reset((0, 2), specs[:2], ["position"]).observations["position"].shape == (3, 1)
    broken[:] = []
    assert np.isfinite(shard.reset((0, 1, 2), specs, ["position"]).observations["position"]).all()


class EndlessVectorEnv(VectorEnv):
    """Never ends an episode; Gymnasium leaves the time limit of its registration to it."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int, **_: Any) -> None:
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = self.action_space = gym.spaces.Box(-1.0, 1.0, (num_envs, 2), np.float32)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions: np.ndarray) -> Any:
        nothing = np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 2), np.float32), np.zeros(self.num_envs), nothing, nothing, {}


gym.register("Endless-v0", vector_entry_point=EndlessVectorEnv, max_episode_steps=7)


@pytest.mark.parametrize("limit", [None, 7, 5])
def test_an_episode_ends_at_the_registered_limit_where_the_vector_env_does_not_keep_it(limit: int | None) -> None:
    config = drift_config(id="test_vector:Endless-v0", max_episode_steps=limit)
    shard = make_env_shard(config, chunk_size=4)
    shard.reset(range(3), [make_spec(group_id) for group_id in range(3)], ["state"])
    results = [shard.step(np.zeros((3, 4, 2), np.float32), np.ones(3, bool), ["state"]) for _ in range(2)]
    assert [result.truncated.tolist() for result in results] == [[False] * 3, [True] * 3]
    assert (results[0].num_steps + results[1].num_steps).tolist() == [limit or 7] * 3
