"""What the rows of a policy batch observe, from the workers that they come from, side by side."""

from typing import Any

import numpy as np

from vla_train.pipeline.messages import PolicyBatch
from vla_train.types import on_host


def gather(batch: PolicyBatch, key: str, *, tensors: bool) -> Any:
    """One array of the observation for the B rows of a batch, in memory of its own.

    Args:
        batch: The rows and what their workers observe.
        key: Of the observation.
        tensors: Whether it may stay on the GPU, where the workers that observe it left it there.

    Returns:
        (B, ...): an array, or a PyTorch tensor on the GPU.
    """
    observed = {worker: result.observations[key] for worker, result in batch.results.items()}
    if not (tensors and all(getattr(array, "is_cuda", False) for array in observed.values())):
        observed = {worker: on_host(array) for worker, array in observed.items()}
    first = next(iter(observed.values()))
    shape = (len(batch.rows), *first.shape[1:])
    gathered = np.empty(shape, first.dtype) if isinstance(first, np.ndarray) else first.new_empty(shape)
    rows: dict[int, list[int]] = {worker: [] for worker in observed}
    for index, row in enumerate(batch.rows):
        rows[row.worker].append(index)
    for worker, array in observed.items():
        gathered[rows[worker]] = array[[batch.rows[index].slot for index in rows[worker]]]
    return gathered
