"""The policy that comes along, improved within minutes on two CPU cores: what `make train` shows.

38 control steps, 1.9 seconds, are about what the expert needs that taught it. Half of the initial states are held out.
"""

from pathlib import Path

from vla_train.config import EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig


def demo() -> TrainConfig:
    """The small policy that comes along learns to close a microwave; minutes on two CPU cores."""
    return TrainConfig(
        output=Path("runs/demo"),
        iterations=24,
        train_fraction=0.5,
        env=EnvConfig(
            id="Libero-v0",
            kwargs={
                "suite": "libero_90",
                "task_ids": "[33]",
                "max_episode_steps": "38",
                "detail": "fast",
                "image_size": "128",
            },
            num_workers=2,
            envs_per_worker=8,
        ),
        policy=PolicyConfig(checkpoint="demo"),
        rollout=RolloutConfig(
            groups_per_iteration=8,
            group_size=16,
            temperature=1.3,
            min_success_rate=0.05,
            max_success_rate=0.95,
            max_attempts=1.0,
        ),
        optim=OptimConfig(
            learning_rate=1.5e-4,
            schedule="cosine",
            min_learning_rate_fraction=0.1,
            warmup_steps=10,
            beta2=0.95,
            minibatch_trajectories=16,
            microbatch_rows=32,
        ),
        eval=EvalConfig(every=12, temperatures=(0.0, 1.0), episodes_per_task=100, videos=3),
    )
