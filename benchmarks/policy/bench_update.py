"""Speed of a GRPO update with LoRA against a plain peft + AdamW loop over stock transformers, in the same run.

    python benchmarks/policy/bench_update.py                                    # 7B on one 141 GB GPU, about 4 minutes
    python benchmarks/policy/bench_update.py --size tiny --device cpu --rows 8

Ours is all of `Trainer.update`: advantages, mini-batch, images from the host, preprocessing, loss, AdamW. The plain loop is
given pixels on the device and minimises the mean log-probability, which costs a little less.
"""

import argparse
import gc
import json
import time

import numpy as np
import torch
from bench_generation import CEILING, INSTRUCTION, PLAIN_POSITIONS, model_flops
from peft import LoraConfig, inject_adapter_in_model
from plain_openvla import ACTION_TOKENS, PATCHES, build_plain

from vla_train.config import AlgoConfig, OptimConfig, PolicyConfig
from vla_train.policy.torch_policy import build_policy
from vla_train.trainer.trainer import Trainer
from vla_train.types import EpisodeSpec, Group, Observation, Trajectory

_DECISIONS = 8
_GROUP_SIZE = 8


def show(record: dict[str, object]) -> None:
    """One JSON line, with the most memory used since the last one."""
    if torch.cuda.is_available():
        record["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}
    print(json.dumps(rounded), flush=True)


def make_groups(policy: object, rows: int) -> list[Group]:
    """Groups of random pictures and the policy's own samples; half of each group succeeds."""
    random = np.random.default_rng(0)
    groups = []
    for group_id in range(max(1, rows // (_DECISIONS * _GROUP_SIZE))):
        trajectories = []
        for sample_id in range(_GROUP_SIZE):
            images = random.integers(0, 256, (_DECISIONS, 256, 256, 3), np.uint8)
            output = policy.act(  # type: ignore[attr-defined]
                Observation(images=images, instructions=(INSTRUCTION,) * _DECISIONS),
                uniforms=random.random((_DECISIONS, ACTION_TOKENS), np.float32),
                temperature=1.6,
            )
            trajectories.append(
                Trajectory(
                    spec=EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=0, init_state_id=0, seed=0),
                    instruction=INSTRUCTION,
                    images=images,
                    token_ids=output.token_ids,
                    logprobs=output.logprobs,
                    num_steps=np.full(_DECISIONS, 8, np.int32),
                    rewards=np.zeros(_DECISIONS, np.float32),
                    policy_versions=np.zeros(_DECISIONS, np.int32),
                    success=sample_id % 2 == 0,
                    truncated=sample_id % 2 == 1,
                )
            )
        groups.append(Group(group_id=group_id, trajectories=tuple(trajectories)))
    return groups


def time_trainer(arguments: argparse.Namespace, *, lora_rank: int, checkpointing: bool, microbatch: int) -> float:
    """Chunks per second of the second update."""
    low, high = np.full(7, -1.0, np.float32), np.ones(7, np.float32)
    config = PolicyConfig(
        size=arguments.size, device=arguments.device, lora_rank=lora_rank, activation_checkpointing=checkpointing
    )
    policy = build_policy(config, action_low=low, action_high=high, suite=None, seed=0)
    groups = make_groups(policy, arguments.rows)
    optim = OptimConfig(minibatch_trajectories=1024, microbatch_rows=microbatch)
    trainer = Trainer(optim, AlgoConfig(), policy=policy, temperature=1.6, seed=0)
    trainer.update(groups, iteration=0)
    metrics = trainer.update(groups, iteration=1)
    # Forward and twice that backward; with frozen weights the backward has no weight gradients: once; recomputing: once more.
    passes = (2 if lora_rank else 3) + checkpointing
    show(
        {
            "what": "ours, LoRA" if lora_rank else "ours, all weights",
            "checkpointing": checkpointing,
            "microbatch": microbatch,
            "chunks_per_s": metrics.chunks_per_s,
            "of_ceiling": metrics.chunks_per_s * passes * model_flops(PLAIN_POSITIONS - 1) / CEILING,
            "sampling_gap": metrics.sampling_gap,
            "grad_norm": metrics.grad_norm,
        }
    )
    return metrics.chunks_per_s


def time_plain(arguments: argparse.Namespace, *, lora_rank: int, checkpointing: bool, microbatch: int) -> float:
    """Chunks per second of the plain loop."""
    device = arguments.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = build_plain(tiny=arguments.size == "tiny", device=device, dtype=dtype)
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=lora_rank, target_modules="all-linear", exclude_modules=["lm_head"]), model)
    if checkpointing:
        for part in (model.dino, model.siglip, model.language_model):
            part.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)
    prompt = torch.randint(1, 30000, (microbatch, PLAIN_POSITIONS - PATCHES - ACTION_TOKENS - 1), device=device)
    pixels = torch.randn(microbatch, 6, 224, 224, device=device, dtype=dtype)
    targets = torch.randint(0, 256, (microbatch, ACTION_TOKENS, 1), device=device)
    for repeat in range(2):
        start = time.perf_counter()
        for _ in range(max(1, arguments.rows // microbatch)):
            logprobs = torch.log_softmax(model(pixels, prompt).float() / 1.6, dim=-1).gather(-1, targets)
            logprobs.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        rate = max(1, arguments.rows // microbatch) * microbatch / (time.perf_counter() - start)
        if repeat:
            show({"what": "plain, LoRA", "checkpointing": checkpointing, "microbatch": microbatch, "chunks_per_s": rate})
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "openvla-7b"), default="openvla-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=512, help="decisions per update")
    parser.add_argument("--rank", type=int, default=32, help="of the LoRA adapters")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--full", action="store_true", help="try to train all weights, too")
    arguments = parser.parse_args()
    for microbatch in arguments.microbatches:
        for checkpointing in (False, True):
            rates = []
            for measure in (time_plain, time_trainer):
                try:
                    rates.append(
                        measure(arguments, lora_rank=arguments.rank, checkpointing=checkpointing, microbatch=microbatch)
                    )
                except torch.OutOfMemoryError as error:
                    show({"what": measure.__name__, "microbatch": microbatch, "out of memory": str(error)[:80]})
                gc.collect()
                if arguments.device == "cuda":
                    torch.cuda.empty_cache()
            if len(rates) == 2:
                show(
                    {
                        "what": "ours / plain",
                        "microbatch": microbatch,
                        "checkpointing": checkpointing,
                        "ratio": rates[1] / rates[0],
                    }
                )
    if arguments.full:
        time_trainer(arguments, lora_rank=0, checkpointing=True, microbatch=arguments.microbatches[0])


if __name__ == "__main__":
    main()
