"""What a vector env must not return is refused, whatever it was asked for."""

import numpy as np
import pytest
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
