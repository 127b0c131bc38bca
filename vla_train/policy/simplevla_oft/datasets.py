"""What the datasets that a checkpoint was trained on say about playing it: action statistics, gripper, JPEG.

Published checkpoints say little themselves. The names of LIBERO's datasets say more: `libero_spatial_no_noops` holds
demonstrations of the suite libero_spatial, `libero_130_no_noops_trajall` of all suites. Nothing is taken on trust that
would cost success without an error: where names and statistics leave a doubt, the user is asked.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_train.policy.simplevla_oft.action_tokens import ActionStatistics
from vla_train.policy.simplevla_oft.config import Gripper

_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
_COLLECTIONS = {
    "libero_4_task_suites": _SUITES[:4],
    "libero_100": ("libero_10", "libero_90"),
    "libero_130": _SUITES,
}
"""Datasets of several suites."""
_OF_RLINF = ("libero_90_no_noops_trajall", "libero_130_no_noops_trajall")
"""Datasets whose checkpoints RLinf alone publishes."""
_NEAR = 0.05
"""Quantiles of a gripper that is open or closed are its two values, but for a few values in between."""


def is_libero(dataset: str) -> bool:
    """Whether a dataset is one of LIBERO's, by its name."""
    return dataset.startswith("libero_")


def covers(dataset: str, suite: str) -> bool:
    """Whether a dataset holds demonstrations of a suite, by its name.

    It does if its name is the suite's, or begins with it and an underscore (`libero_10_no_noops_1traj`), or with the name of
    a collection that has the suite. A suite that varies another (LIBERO-PRO's `libero_goal_swap`) is covered with that one.
    """
    varied = _varied(suite)
    collections = [name for name, suites in _COLLECTIONS.items() if varied in suites]
    return any(_begins_with(dataset, name) for name in (suite, varied, *collections))


def select_statistics(norm_stats: Mapping[str, Any], *, key: str | None, unnorm_key: str | None, suite: str | None) -> str:
    """The dataset whose statistics a run uses.

    In this order: `key`, whatever it names; what the checkpoint names, if it covers the suite; `<suite>_no_noops` and
    `<suite>`; the only one that covers the suite. Where the env has no suite: what the checkpoint names, or the only one.

    Args:
        norm_stats: Statistics by dataset.
        key: What the user names.
        unnorm_key: What the checkpoint names, with or without `_no_noops`; passed over if it has no such statistics.
        suite: The env's, None where it has none.

    Raises:
        ValueError: `key` names none, none covers the suite, or several could be meant.
    """
    known = ", ".join(sorted(norm_stats)) or "none"
    if key is not None:
        if key not in norm_stats:
            raise ValueError(f"policy.statistics_key {key!r} is not in the checkpoint's dataset statistics; it has {known}")
        return key
    fitting = [name for name in norm_stats if suite is None or covers(name, suite)]
    preferred = [] if unnorm_key is None else [unnorm_key, f"{unnorm_key}_no_noops"]
    if suite is not None:
        preferred += [f"{suite}_no_noops", suite, f"{_varied(suite)}_no_noops", _varied(suite)]
    for name in preferred:
        if name in fitting:
            return name
    if not fitting:
        raise ValueError(
            f"the checkpoint has no action statistics of suite {suite}, only of {known}: to play it with those all the same, "
            "name one with policy.statistics_key; a trainer may have left them out, then name a checkpoint that has them with "
            "policy.companion"
        )
    if len(fitting) > 1:
        fits = ", ".join(sorted(fitting))
        raise ValueError(f"cannot tell which dataset statistics to use: name one with policy.statistics_key; there are {fits}")
    return fitting[0]


def passes_jpeg(dataset: str) -> bool:
    """Whether the images of a dataset were stored as JPEG, so that frames must take that round trip.

    All of LIBERO's were, as they are published for OpenVLA, whatever suite and ending their names have.
    """
    return is_libero(dataset)


def is_of_rlinf(dataset: str) -> bool:
    """Whether RLinf has published the checkpoints of this dataset, and figures by its own way of preparing images."""
    return dataset in _OF_RLINF


def gripper_of(dataset: str, statistics: ActionStatistics, *, low: float, high: float) -> Gripper:
    """How a dataset stores the last action dimension, where its name and statistics leave no doubt.

    LIBERO's datasets store 0 close .. 1 open; the env wants +1 close, -1 open. The mask may leave such values alone, or map
    them to q01 .. q99, which are 0 and 1 then: either way, played as decoded, that gripper would never open.

    Args:
        dataset: Its name.
        statistics: Of its actions.
        low: Lower bound of the env's last action dimension.
        high: Upper bound.

    Returns:
        "libero", or None: actions are played as decoded.

    Raises:
        ValueError: There is doubt.
    """
    stored = float(statistics.low[-1]), float(statistics.high[-1])
    is_zero_to_one = np.allclose(stored, (0, 1), atol=_NEAR)
    if is_libero(dataset) and is_zero_to_one and statistics.mask[:-1].all():
        return "libero"
    fits_env = np.allclose(stored, (low, high), atol=_NEAR)
    if statistics.mask.all() and (fits_env or not (is_libero(dataset) or is_zero_to_one)):
        return None
    raise ValueError(
        f"the checkpoint does not say how dataset {dataset!r} stores the gripper, and its statistics leave doubt (last "
        f"dimension: q01 {stored[0]:g}, q99 {stored[1]:g}, mask {str(bool(statistics.mask[-1])).lower()}; in the env it is "
        f"{low:g} .. {high:g}): set policy.gripper to libero (0 close .. 1 open) or none (already the env's own values)"
    )


def _varied(suite: str) -> str:
    """The suite itself, or the one of LIBERO's that it varies."""
    return next((name for name in _SUITES if _begins_with(suite, name)), suite)


def _begins_with(name: str, beginning: str) -> bool:
    return name == beginning or name.startswith(f"{beginning}_")
