"""The policy that comes along, improved within minutes on two CPU cores: what `make train` shows."""

from pathlib import Path

from vla_train.config import EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig


def demo() -> TrainConfig:
    """The small policy that comes along learns to close a microwave; minutes on two CPU cores."""
    return TrainConfig(
        output=Path("runs/demo"),
        iterations=20,
        train_fraction=0.5,
        checkpoint_every=5,
        env=EnvConfig(
            id="Libero-v0",
            kwargs={
                "suite": "libero_90",
                "task_ids": "[33]",
                "max_episode_steps": "40",
                "detail": "fast",
                "image_size": "128",
            },
            num_workers=2,
            envs_per_worker=8,
        ),
        policy=PolicyConfig(checkpoint="demo"),
        rollout=RolloutConfig(groups_per_iteration=8, group_size=8, temperature=1.0, max_attempts=1.0),
        optim=OptimConfig(
            learning_rate=1e-4,
            schedule="cosine",
            min_learning_rate_fraction=0.1,
            warmup_steps=10,
            beta2=0.95,
            minibatch_trajectories=16,
            microbatch_rows=32,
        ),
        eval=EvalConfig(every=10, temperatures=(0.0, 1.0), episodes_per_task=50, videos=3),
    )
