"""An episode that does not say what to do is refused, and whoever caused it is told."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from pipeline_envs import DriftEnv, drift_config, make_spec

from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvFaultError, EnvShard
from vla_train.envs.vector import VectorShard


class SilentEnv(DriftEnv):
    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        return observation | {"instruction": "  "}, info


gym.register("SilentDrift-v0", entry_point=SilentEnv, max_episode_steps=20, disable_env_checker=True)


def shared_memory_shard() -> EnvShard:
    envs = AsyncVectorEnv([DriftEnv] * 2, shared_memory=True, autoreset_mode=AutoresetMode.DISABLED)
    config = drift_config(max_episode_steps=20, envs_per_worker=2)
    return VectorShard(envs, config=config, chunk_size=4)


def silent_shard() -> EnvShard:
    config = drift_config(id="test_blank_instructions:SilentDrift-v0", envs_per_worker=2)
    return make_env_shard(config, chunk_size=4)


@pytest.mark.parametrize("make_shard", [shared_memory_shard, silent_shard])
def test_an_episode_with_a_blank_instruction_is_refused(make_shard):
    shard = make_shard()
    with pytest.raises(EnvFaultError, match=r"instruction of slot 0 is blank .*shared_memory=False"):
        shard.reset([0, 1], [make_spec(0, 0), make_spec(0, 1)], ["image"])
    shard.close()


def test_gymnasiums_async_vector_env_without_shared_memory_is_taken():
    config = drift_config(kwargs={"vectorization_mode": "async"}, envs_per_worker=2)
    shard = make_env_shard(config, chunk_size=4)
    result = shard.reset([0, 1], [make_spec(0, 0), make_spec(0, 1)], ["image"])
    assert all(instruction.strip() for instruction in result.instructions)
    assert np.isfinite(result.observations["image"]).all()
    shard.close()
