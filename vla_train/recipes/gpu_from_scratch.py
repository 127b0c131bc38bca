"""Ten LIBERO tasks in one policy, from nothing, on one GPU: demonstrations, supervised training, GRPO, evaluation.

What came of it, and why these numbers: docs/results/libero_object.md.
"""

from pathlib import Path

from vla_train.config import AdamWConfig, EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig
from vla_train.from_scratch.config import FromScratchConfig
from vla_train.from_scratch.stage_options import CollectStage, LastEvaluation, SftStage, TrainStage
from vla_train.sft.config import AugmentConfig

TEMPERATURE = 0.4
"""At which GRPO begins, and of the last evaluation beside greedy play."""


def gpu_from_scratch() -> FromScratchConfig:
    """From nothing to a whole LIBERO suite on one GPU: an expert's demonstrations, sft, GRPO, evaluation."""
    return FromScratchConfig(
        output=Path("runs/from-scratch"),
        suite="libero_object",
        detail="fast",
        image_size=128,
        demonstrations_per_task=14,
        env=EnvConfig(
            id="Libero-v0",
            kwargs={"sleep": "true"},
            worker="process",
            num_workers=8,
            envs_per_worker=16,
            max_episode_steps=200,
        ),
        policy=PolicyConfig(size="small", compile=True),
        collect=CollectStage(noise=0.05),
        sft=SftStage(
            steps=1400,
            batch_rows=256,
            label_step=0.125,
            statistics="bounds",
            validation_fraction=0.0,
            log_every=20,
            checkpoint_every=1000,
            augment=AugmentConfig(contrast=0.0, saturation=0.0, hue=0.0, brightness=0.15),
            optim=AdamWConfig(learning_rate=6e-4, schedule="cosine", warmup_steps=100, beta2=0.95, microbatch_rows=256),
            eval=EvalConfig(every=0),
        ),
        train=TrainStage(
            iterations=120,
            checkpoint_every=10,
            rollout=RolloutConfig(
                groups_per_iteration=32,
                group_size=8,
                temperature=TEMPERATURE,
                final_temperature=0.1,
                max_policy_batch=128,
                min_success_rate=0.05,
                max_success_rate=0.95,
                max_attempts=1.0,
            ),
            optim=OptimConfig(
                learning_rate=5e-5,
                schedule="cosine",
                min_learning_rate_fraction=0.1,
                warmup_steps=20,
                beta2=0.95,
                minibatch_trajectories=64,
                microbatch_rows=256,
            ),
            eval=EvalConfig(every=10, episodes_per_task=4),
        ),
        evaluation=LastEvaluation(videos=5, temperatures=(0.0, TEMPERATURE)),
    )
