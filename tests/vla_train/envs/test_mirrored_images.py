"""Only an env that says that it mirrors its images has the videos of its episodes mirrored back."""

import gymnasium as gym
import pytest
from pipeline_envs import ChunkedDriftEnv, DriftEnv, drift_config

from vla_train.envs.factory import make_env_shard


class MirroredVectorEnv(ChunkedDriftEnv):
    mirrored_images = True


class MirroredEnv(DriftEnv):
    mirrored_images = True


gym.register("MirroredVectorDrift-v0", entry_point=DriftEnv, vector_entry_point=MirroredVectorEnv, max_episode_steps=20)
gym.register("MirroredDrift-v0", entry_point=MirroredEnv, max_episode_steps=20, disable_env_checker=True)


@pytest.mark.parametrize(
    ("env_id", "mirrored"),
    [
        ("pipeline_envs:Drift-v0", False),
        ("pipeline_envs:ChunkedDrift-v0", False),
        ("test_mirrored_images:MirroredDrift-v0", True),
        ("test_mirrored_images:MirroredVectorDrift-v0", True),
    ],
)
def test_a_group_tells_whether_its_env_mirrors_images(env_id: str, mirrored: bool) -> None:
    group = make_env_shard(drift_config(id=env_id), chunk_size=4)
    assert group.description.mirrored_images == mirrored
    group.close()
