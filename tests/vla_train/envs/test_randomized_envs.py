"""Episodes of an env that draws looks of its own from a seed are functions of their specs, too."""

import json

import numpy as np

from vla_train.config import EnvConfig
from vla_train.envs.factory import make_env_shard
from vla_train.types import EpisodeSpec


def spec(seed: int) -> EpisodeSpec:
    return EpisodeSpec(group_id=0, sample_id=0, task_id=0, init_state_id=0, seed=seed)


def test_an_episode_of_a_randomized_env_looks_as_its_seed_says_in_any_slot_and_at_any_time():
    kwargs = {"suite": "libero_spatial", "task_ids": "[0]", "detail": "fast", "image_size": "32", "settle_steps": "0"}
    config = EnvConfig(kwargs=kwargs | {"randomization": json.dumps({"colours": 0.5})}, envs_per_worker=3)
    shard = make_env_shard(config, chunk_size=2)
    try:
        first = np.copy(shard.reset([0, 1, 2], [spec(1), spec(2), spec(1)], ("image",)).observations["image"])
        again = shard.reset([1], [spec(1)], ("image",)).observations["image"]
        np.testing.assert_array_equal(first[0], first[2])
        np.testing.assert_array_equal(first[0], again[1])
        assert (first[0] != first[1]).any()
    finally:
        shard.close()
