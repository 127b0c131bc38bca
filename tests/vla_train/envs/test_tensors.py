"""Pictures that an env leaves on the GPU reach a policy that takes them there, and all others on the host.

The GPU is played by a CPU tensor that says that it is on one; `test_backends.py` and `-m gpu` have the real thing.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from pipeline_envs import ChunkedDriftEnv, DriftEnv, drift_config, make_spec

from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvFaultError, ShardResult
from vla_train.pipeline.gathering import gather
from vla_train.pipeline.messages import BatchRow, PolicyBatch

KEYS = ["image", "position"]


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @property
    def is_cuda(self) -> bool:
        return True

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


class TensorDriftEnv(ChunkedDriftEnv):
    """Observes arrays or tensors, as it is asked to."""

    def __init__(self, num_envs: int, *, chunk_size: int, max_episode_steps: int = 20, arrays: str = "numpy") -> None:
        super().__init__(num_envs, chunk_size=chunk_size, max_episode_steps=max_episode_steps)
        self._arrays = arrays

    def _batch(self) -> dict[str, Any]:
        batch = super()._batch()
        if self._arrays == "numpy":
            return batch
        return batch | {key: torch.from_numpy(batch[key]).as_subclass(OnGpu) for key in KEYS}


gym.register("TensorDrift-v0", entry_point=DriftEnv, vector_entry_point=TensorDriftEnv, max_episode_steps=20)


def played(*, tensors: bool, **kwargs: str) -> ShardResult:
    """Three slots after a reset and a chunk."""
    config = drift_config(id="test_tensors:TensorDrift-v0", kwargs=kwargs)
    shard = make_env_shard(config, chunk_size=3, tensors=tensors)
    shard.reset(range(3), [make_spec(group_id, init_state_id=0) for group_id in range(3)], KEYS)
    result = shard.step(np.full((3, 3, 2), 0.1, np.float32), np.ones(3, bool), KEYS)
    shard.close()
    return result


def batch_of(results: dict[int, ShardResult], rows: list[tuple[int, int]]) -> PolicyBatch:
    """A policy batch of (worker, slot) rows."""
    return PolicyBatch(
        rows=tuple(
            BatchRow(worker=worker, slot=slot, lease=0, spec=make_spec(0, init_state_id=0), decision=0, instruction="")
            for worker, slot in rows
        ),
        keys=tuple(KEYS),
        workers=tuple(results),
        results=results,
    )


def test_a_shard_made_for_tensors_asks_its_env_for_them_and_passes_them_on():
    plain, tensors = played(tensors=False), played(tensors=True)
    for key in KEYS:
        assert isinstance(plain.observations[key], np.ndarray)
        assert isinstance(tensors.observations[key], OnGpu)
        np.testing.assert_array_equal(tensors.observations[key].cpu().numpy(), plain.observations[key])


def test_tensors_of_an_env_that_nobody_asked_come_to_the_host():
    result = played(tensors=False, arrays="torch")
    assert all(isinstance(result.observations[key], np.ndarray) for key in KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_rows_are_gathered_alike_from_arrays_and_from_tensors(key: str):
    plain, tensors = played(tensors=False), played(tensors=True)
    rows = [(0, 2), (1, 0), (0, 0), (1, 1)]
    expected = gather(batch_of({0: plain, 1: plain}, rows), key, tensors=True)
    np.testing.assert_array_equal(expected, plain.observations[key][[2, 0, 0, 1]])
    kept = gather(batch_of({0: tensors, 1: tensors}, rows), key, tensors=True)
    assert isinstance(kept, torch.Tensor)
    np.testing.assert_array_equal(kept.cpu().numpy(), expected)
    for results, takes in (({0: tensors, 1: tensors}, False), ({0: plain, 1: tensors}, True)):
        gathered = gather(batch_of(results, rows), key, tensors=takes)
        assert isinstance(gathered, np.ndarray)
        np.testing.assert_array_equal(gathered, expected)


def test_a_tensor_with_nan_is_refused_as_an_array_is(monkeypatch: pytest.MonkeyPatch):
    batch = TensorDriftEnv._batch

    def broken(env: TensorDriftEnv) -> dict[str, Any]:
        observation = batch(env)
        observation["position"][1] = torch.nan
        return observation

    monkeypatch.setattr(TensorDriftEnv, "_batch", broken)
    with pytest.raises(EnvFaultError, match="position holds NaN"):
        played(tensors=True)
