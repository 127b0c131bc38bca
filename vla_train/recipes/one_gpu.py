"""A published 7B checkpoint on one GPU: adapters on a base in FP8, simulators on the same card.

    one-gpu    80 GB or more (A100 has no FP8: --policy.base-dtype nf4, or auto)
    gpu-48gb   L20, L40, A6000 (the last: nf4)
    gpu-24gb   4090, L4

They play the same episodes and learn the same; what differs is how many run at once. How an update is cut and what of it is
recomputed is chosen from the memory that there is.
"""

from dataclasses import replace
from pathlib import Path

from vla_train.config import EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig


def one_gpu() -> TrainConfig:
    """LoRA of rank 32 on one LIBERO suite, one GPU of 80 GB (A100: base-dtype nf4); needs --policy.checkpoint."""
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
        policy=PolicyConfig(size="openvla-7b", compile=True, lora_rank=32, lora_layers="language", base_dtype="fp8"),
        rollout=RolloutConfig(groups_per_iteration=16, group_size=8, max_policy_batch=64),
        optim=OptimConfig(learning_rate=1e-5, minibatch_trajectories=64),
        eval=EvalConfig(every=10, episodes_per_task=10),
    )


def gpu_48gb() -> TrainConfig:
    """The same on one GPU of 48 GB (L20, L40)."""
    return _smaller(one_gpu(), output="runs/gpu-48gb", envs_per_worker=16, max_policy_batch=32)


def gpu_24gb() -> TrainConfig:
    """The same on one GPU of 24 GB (4090)."""
    return _smaller(one_gpu(), output="runs/gpu-24gb", envs_per_worker=8, max_policy_batch=16)


def _smaller(config: TrainConfig, *, output: str, envs_per_worker: int, max_policy_batch: int) -> TrainConfig:
    return replace(
        config,
        output=Path(output),
        env=replace(config.env, envs_per_worker=envs_per_worker),
        rollout=replace(config.rollout, max_policy_batch=max_policy_batch),
    )
