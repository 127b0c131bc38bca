"""The learning rate of each AdamW step: warm-up, then constant, a half cosine, or a straight line down.

Invariant: a function of the step's number and of how many there are, so that a resumed run goes on where it was.
"""

import math

from vla_train.config import AdamWConfig, TrainConfig


def learning_rate(config: AdamWConfig, *, step: int, total_steps: int) -> float:
    """Learning rate of a step.

    Args:
        config: Largest rate, warm-up, schedule and where it ends.
        step: 0, 1, ...: steps done before.
        total_steps: Steps of the whole run; what comes after them has the last one's rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    falling = max(1, total_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / falling)
    floor = config.min_learning_rate_fraction
    match config.schedule:
        case "cosine":
            return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
        case "linear":
            return config.learning_rate * (floor + (1 - floor) * (1 - progress))
    return config.learning_rate


def planned_steps(config: TrainConfig) -> int:
    """AdamW steps of a whole run of GRPO, if each iteration keeps as many groups as it is asked for.

    Iterations that find fewer groups with signal take fewer steps, and the schedule then ends above its floor.
    """
    optim, rollout = config.optim, config.rollout
    trajectories = rollout.groups_per_iteration * rollout.group_size
    return config.iterations * optim.epochs * -(-trajectories // optim.minibatch_trajectories)
