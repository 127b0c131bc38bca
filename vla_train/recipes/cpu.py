"""Real LIBERO tasks on any machine: a tiny policy from random weights, minutes on two CPU cores."""

from pathlib import Path

from vla_train.config import EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig


def cpu() -> TrainConfig:
    """A tiny policy from random weights on two LIBERO tasks; minutes on two CPU cores."""
    return TrainConfig(
        output=Path("runs/cpu"),
        iterations=4,
        checkpoint_every=1,
        env=EnvConfig(
            id="Libero-v0",
            kwargs={"suite": "libero_spatial", "task_ids": "[0, 1]", "detail": "fast", "image_size": "128"},
            num_workers=2,
            envs_per_worker=4,
        ),
        policy=PolicyConfig(size="tiny"),
        rollout=RolloutConfig(groups_per_iteration=2, group_size=4, max_attempts=1.0),
        optim=OptimConfig(learning_rate=3e-4, minibatch_trajectories=8, microbatch_rows=32),
        eval=EvalConfig(every=4, episodes_per_task=2, videos=1),
    )
