"""SimpleVLA-RL's published hyperparameters for LIBERO (arXiv 2509.09674): all weights, several GPUs."""

from pathlib import Path

from vla_train.config import AlgoConfig, EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig


def paper() -> TrainConfig:
    """SimpleVLA-RL's published hyperparameters, all weights, on several GPUs; needs --policy.checkpoint."""
    return TrainConfig(
        output=Path("runs/paper"),
        iterations=300,
        env=EnvConfig(
            id="Libero-v0",
            kwargs={"suite": "libero_10", "detail": "full", "image_size": "256"},
            num_workers=4,
            envs_per_worker=64,
            max_episode_steps=512,
        ),
        policy=PolicyConfig(size="openvla-7b", compile=True, activation_checkpointing="on"),
        rollout=RolloutConfig(
            groups_per_iteration=64,
            group_size=8,
            temperature=1.6,
            min_success_rate=0.1,
            max_success_rate=0.9,
            max_attempts=16.0,
        ),
        algo=AlgoConfig(advantage="grpo", clip_low=0.2, clip_high=0.28, aggregation="seq-mean-token-mean"),
        optim=OptimConfig(learning_rate=5e-6, weight_decay=0.01, max_grad_norm=1.0, minibatch_trajectories=128, epochs=1),
        eval=EvalConfig(every=10, episodes_per_task=0),
    )
