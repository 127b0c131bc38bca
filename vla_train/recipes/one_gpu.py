"""A published 7B checkpoint on one 80 GB or 141 GB GPU: LoRA, simulators on the same machine."""

from pathlib import Path

from vla_train.config import EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig


def one_gpu() -> TrainConfig:
    """LoRA of rank 32 on one LIBERO suite, on one GPU of 80 GB or more; needs --policy.checkpoint."""
    return TrainConfig(
        output=Path("runs/one-gpu"),
        iterations=100,
        env=EnvConfig(
            id="Libero-v0",
            kwargs={"suite": "libero_spatial", "detail": "full", "image_size": "256"},
            num_workers=3,
            envs_per_worker=32,
            max_episode_steps=512,
        ),
        policy=PolicyConfig(size="openvla-7b", compile=True, lora_rank=32, activation_checkpointing=True),
        rollout=RolloutConfig(groups_per_iteration=16, group_size=8, max_policy_batch=64),
        optim=OptimConfig(learning_rate=1e-5, minibatch_trajectories=64, microbatch_rows=8),
        eval=EvalConfig(every=10, episodes_per_task=10),
    )
