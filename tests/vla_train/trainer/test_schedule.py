"""The learning rate of each step, by hand."""

import pytest

from vla_train.config import OptimConfig, RolloutConfig, TrainConfig
from vla_train.trainer.schedule import learning_rate, planned_steps


def rates(steps: int, total_steps: int, **changes) -> list[float]:
    config = OptimConfig(learning_rate=1.0, **changes)
    return [learning_rate(config, step=step, total_steps=total_steps) for step in range(steps)]


def test_a_warm_up_rises_in_equal_steps_and_a_constant_rate_stays() -> None:
    assert rates(6, 6, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates(3, 1) == [1, 1, 1]


def test_a_linear_schedule_ends_with_the_last_step_at_its_floor() -> None:
    assert rates(5, 5, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert rates(7, 7, schedule="linear", warmup_steps=2, min_learning_rate_fraction=0.2) == pytest.approx(
        [0.5, 1, 1, 0.8, 0.6, 0.4, 0.2]
    )


def test_a_cosine_is_half_way_down_in_the_middle_and_ends_at_its_floor() -> None:
    assert rates(5, 5, schedule="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert rates(3, 3, schedule="cosine", min_learning_rate_fraction=0.1) == pytest.approx([1, 0.55, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_steps_past_the_end_keep_the_last_rate(schedule: str) -> None:
    assert rates(6, 3, schedule=schedule, min_learning_rate_fraction=0.5)[2:] == pytest.approx([0.5] * 4)


def test_a_run_shorter_than_its_warm_up_has_rates_all_the_same() -> None:
    assert rates(2, 2, schedule="cosine", warmup_steps=4) == [0.25, 0.5]
    assert rates(5, 4, schedule="linear", warmup_steps=4)[-1] == 1


def test_a_run_is_planned_with_as_many_steps_as_full_iterations_take() -> None:
    config = TrainConfig(
        iterations=10,
        rollout=RolloutConfig(groups_per_iteration=5, group_size=8),
        optim=OptimConfig(minibatch_trajectories=16, epochs=2),
    )
    assert planned_steps(config) == 10 * 2 * 3


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_floor_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="min_learning_rate_fraction"):
        OptimConfig(min_learning_rate_fraction=fraction)
