"""The numbers a policy draws its decisions with.

Invariant: they depend on the run's seed and the identity of the decision alone, so an episode does not depend on timing,
on the slot it was played in, or on which others shared its batch. Counter-based (Philox4x64): nothing is stored.
"""

import numpy as np

from vla_train.types import EpisodeSpec


def sampling_numbers(seed: int, spec: EpisodeSpec, decision: int, count: int) -> np.ndarray:
    """(count,) float32 in [0, 1) for the given decision (0, 1, ...) of an episode."""
    # The lowest counter word is the one that advances within a decision; the other three name the decision.
    philox = np.random.Philox(key=[seed, 0], counter=[0, decision, spec.sample_id, spec.group_id])
    return np.random.Generator(philox).random(count, dtype=np.float32)
