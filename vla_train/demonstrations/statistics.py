"""Statistics of actions in the layout of OpenVLA's `dataset_statistics.json`: what a policy divides into bins.

    {NAME: {"action": {"mean", "std", "max", "min", "q01", "q99", "mask"}, "num_transitions", "num_trajectories"}}

`mask` is false where actions are taken as they are: a gripper that is only ever open or closed has no scale to learn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def action_statistics(episodes: Sequence[np.ndarray]) -> dict[str, Any]:
    """One dataset's entry.

    Args:
        episodes: (T, A) actions of each episode. The last dimension is the gripper where it takes two values only.

    Raises:
        ValueError: There are no actions, or one is not finite.
    """
    if not episodes or not sum(map(len, episodes)):
        raise ValueError("statistics need at least one action, and the dataset has none")
    actions = np.concatenate(episodes).astype(np.float64)
    if not np.isfinite(actions).all():
        raise ValueError("an action of the dataset is not finite")
    low, high = np.quantile(actions, [0.01, 0.99], axis=0)
    mask = [True] * actions.shape[1]
    mask[-1] = not is_two_valued(actions[:, -1])
    return {
        "action": {
            "mean": actions.mean(0).tolist(),
            "std": actions.std(0).tolist(),
            "max": actions.max(0).tolist(),
            "min": actions.min(0).tolist(),
            "q01": low.tolist(),
            "q99": high.tolist(),
            "mask": mask,
        },
        "num_transitions": len(actions),
        "num_trajectories": len(episodes),
    }


def is_two_valued(values: np.ndarray) -> bool:
    """Whether a gripper's actions are all -1 or 1, or all 0 or 1."""
    return bool(np.isin(values, (-1, 1)).all() or np.isin(values, (0, 1)).all())
