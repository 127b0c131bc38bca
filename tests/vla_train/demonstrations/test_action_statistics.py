"""Statistics in OpenVLA's layout."""

import numpy as np
import pytest

from vla_train.demonstrations.statistics import action_statistics
from vla_train.policy.simplevla_oft.action_tokens import ActionStatistics


def episodes(gripper: tuple[float, float], lengths: tuple[int, ...] = (40, 60)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    actions = [rng.normal(size=(length, 3)).astype(np.float32) for length in lengths]
    for episode in actions:
        episode[:, -1] = np.where(episode[:, -1] > 0, gripper[1], gripper[0])
    return actions


def test_quantiles_means_and_counts_are_those_of_all_actions_together():
    given = episodes((-1, 1))
    entry = action_statistics(given)
    together = np.concatenate(given).astype(np.float64)
    for name, expected in {
        "q01": np.quantile(together, 0.01, axis=0),
        "q99": np.quantile(together, 0.99, axis=0),
        "mean": together.mean(0),
        "std": together.std(0),
        "min": together.min(0),
        "max": together.max(0),
    }.items():
        np.testing.assert_allclose(entry["action"][name], expected)
    assert (entry["num_transitions"], entry["num_trajectories"]) == (100, 2)


@pytest.mark.parametrize(("gripper", "scaled"), [((-1, 1), False), ((0, 1), False), ((-0.4, 0.7), True)])
def test_a_gripper_of_two_values_is_left_as_it_is(gripper: tuple[float, float], scaled: bool):
    assert action_statistics(episodes(gripper))["action"]["mask"] == [True, True, scaled]


def test_the_policy_reads_them():
    statistics = ActionStatistics.from_json(action_statistics(episodes((0, 1))), name="own")
    np.testing.assert_array_equal(statistics.mask, [True, True, False])
    np.testing.assert_allclose(statistics.normalise(statistics.high[None])[0, :2], 1, atol=1e-6)


def test_nothing_and_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="need at least one action"):
        action_statistics([])
    with pytest.raises(ValueError, match="is not finite"):
        action_statistics([np.array([[0.0, np.nan]])])
