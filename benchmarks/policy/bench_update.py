"""Speed and memory of a GRPO update against a plain peft + AdamW loop over stock transformers, in the same run.

    python benchmarks/policy/bench_update.py                                    # 7B with LoRA on one GPU, about 4 minutes
    python benchmarks/policy/bench_update.py --only-full                        # all 7B weights, about 2 minutes
    python benchmarks/policy/bench_update.py --size tiny --device cpu --rows 32 --full

Ours is all of `GroupTrainer.update`: advantages, mini-batch, images from the host, preprocessing, loss, AdamW with float32
weights and gradient sums. The plain loop is given pixels on the device and minimises the mean log-probability, which costs a
little less; its prompts are as long as ours.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from bench_generation import INSTRUCTION
from measuring import Report, describe_device, forward_flops, matrix_ceiling, wait
from peft import LoraConfig, inject_adapter_in_model
from plain_openvla import ACTION_TOKENS, build_plain

from vla_train.bench.material import make_groups
from vla_train.bench.measure import PolicyAlone
from vla_train.config import AlgoConfig, OptimConfig, PolicyConfig
from vla_train.policy.precision import chosen_dtype
from vla_train.policy.simplevla_oft import named_config
from vla_train.policy.simplevla_oft.build import build_policy
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.policy.simplevla_oft.prompts import PromptEncoder
from vla_train.policy.simplevla_oft.small_tokenizer import PROMPT_END_ID, small_tokenizer
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.types import EnvDescription, Group, Observation

_PLAIN = "plain, LoRA"
_DECISIONS = 8
_GROUP_SIZE = 2
_PICTURES = 8
_WARM_UP = 4
"""Micro-batches before the measurement."""
_ACTIVATIONS_GB = 10.0
"""Room to leave for activations, recomputed, and temporary tensors."""
_KINDS: dict[str, dict[str, str]] = {
    "bf16": {},
    "fp8": {"base_dtype": "fp8"},
    "fp8, language": {"base_dtype": "fp8", "lora_layers": "language"},
    "nf4, language": {"base_dtype": "nf4", "lora_layers": "language"},
}
"""Ours, and the options that make them; compiled on a GPU."""


def make_policy(arguments: argparse.Namespace, **options: object) -> SimpleVLAOFTPolicy:
    """With random weights, always the same."""
    low, high = np.full(7, -1.0, np.float32), np.ones(7, np.float32)
    config = PolicyConfig(size=arguments.size, random_weights=True, device=arguments.device, **options)  # type: ignore[arg-type]
    return build_policy(config, EnvDescription(observations={}, action_low=low, action_high=high), seed=0)


def sampled_groups(policy: SimpleVLAOFTPolicy, rows: int) -> list[Group]:
    """Groups of random pictures and the policy's own samples; half of each group succeeds."""
    random = np.random.default_rng(0)
    seen = Observation(
        arrays={"image": random.integers(0, 256, (_PICTURES, 256, 256, 3), np.uint8)}, instructions=(INSTRUCTION,) * _PICTURES
    )
    decision = PolicyAlone(policy, seen, temperature=1.6).decide(max_rows=_PICTURES)
    return make_groups(seen, decision, rows=rows, group_size=_GROUP_SIZE, episode_decisions=_DECISIONS, chunk_size=8)


def measure_plain(report: Report, arguments: argparse.Namespace, *, microbatch: int, checkpointing: bool) -> float:
    """Chunks per second of the plain loop."""
    device, dtype = arguments.device, _dtype(arguments.device)
    model = build_plain(tiny=arguments.size == "tiny", device=device, dtype=dtype)
    model.requires_grad_(False)
    adapters = LoraConfig(r=arguments.rank, target_modules="all-linear", exclude_modules=["lm_head"])
    inject_adapter_in_model(adapters, model)
    if checkpointing:
        for part in (model.dino, model.siglip, model.language_model):
            part.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)
    prompt = torch.randint(1, 30000, (microbatch, _prompt_length()), device=device)
    pixels = torch.randn(microbatch, 6, 224, 224, device=device, dtype=dtype)
    targets = torch.randint(0, 256, (microbatch, ACTION_TOKENS, 1), device=device)
    for repeats in (1, max(1, arguments.rows // microbatch)):
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            logprobs = torch.log_softmax(model(pixels, prompt).float() / 1.6, dim=-1).gather(-1, targets)
            logprobs.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        taken = time.perf_counter() - start
    rate = repeats * microbatch / taken
    report.add(what=_PLAIN, microbatch=microbatch, checkpointing=checkpointing, chunks_per_s=rate, seconds=taken)
    return rate


def measure_ours(
    report: Report,
    policy: SimpleVLAOFTPolicy,
    groups: list[Group],
    *,
    ceiling: float,
    microbatch: int,
    recomputed: bool,
    cpu_offload: bool,
    plain_rate: float | None,
    what: str,
) -> None:
    """Chunks per second of an update on all groups, after one of so many micro-batches that a CUDA graph is made of them."""
    optim = OptimConfig(minibatch_trajectories=1024, microbatch_rows=microbatch, cpu_offload=cpu_offload)
    trainer = GroupTrainer(optim, AlgoConfig(), policy=policy, temperature=1.6, total_steps=1, seed=0)
    first = trainer.update(groups[: -(-_WARM_UP * microbatch // (_DECISIONS * _GROUP_SIZE))], iteration=0)
    metrics = trainer.update(groups, iteration=1)
    config, model = policy.model.config, policy.model
    flops = forward_flops(config, config.num_patches + _prompt_length() + ACTION_TOKENS + 1, whole=False)
    all_weights = all(weight.requires_grad for weight in model.language_model.parameters())
    # Forward and gradients of activations; those of weights, where all train; the forward anew, where nothing was kept.
    passes = 2 + all_weights + recomputed
    report.add(
        what=what,
        microbatch=microbatch,
        checkpointing=recomputed,
        chunks_per_s=metrics.chunks_per_s,
        **({"of_plain": metrics.chunks_per_s / plain_rate} if plain_rate else {}),
        of_ceiling=metrics.chunks_per_s * passes * flops / ceiling,
        seconds=metrics.duration_s,
        sampling_gap=first.loss_metrics["sampling_gap"],
        grad_norm=metrics.grad_norm,
    )


def measure_lora(report: Report, arguments: argparse.Namespace, ceiling: float) -> None:
    """Adapters, with and without recomputed activations: plain, and ours of each kind."""
    setups = [(rows, False) for rows in arguments.microbatches]
    setups += [(rows, True) for rows in arguments.checkpointed_microbatches]

    def measure(microbatch: int, checkpointing: bool, what: str, plain_rate: float | None) -> None:
        policy = make_policy(
            arguments,
            lora_rank=arguments.rank,
            activation_checkpointing="on" if checkpointing else "off",
            compile=arguments.device == "cuda",
            **_KINDS[what],
        )
        measure_ours(
            report,
            policy,
            sampled_groups(policy, arguments.rows),
            ceiling=ceiling,
            microbatch=microbatch,
            recomputed=checkpointing,
            cpu_offload=False,
            plain_rate=plain_rate,
            what=f"ours, {what}",
        )

    for microbatch, checkpointing in setups:
        setup = {"microbatch": microbatch, "checkpointing": checkpointing}
        plain_rate = report.attempt(partial(measure_plain, report, arguments, **setup), what=_PLAIN, **setup)
        for what in arguments.kinds:
            report.attempt(partial(measure, microbatch, checkpointing, what, plain_rate), what=f"ours, {what}", **setup)


def measure_full(report: Report, arguments: argparse.Namespace, ceiling: float) -> None:
    """All weights: what they need, and an update, with the optimizer's state on the host where the device is too small."""
    policy = make_policy(arguments, activation_checkpointing="on")
    trained = sum(weight.numel() for weight in policy.model.parameters() if weight.requires_grad)
    weight_bytes = policy.model.dtype.itemsize
    needed = {
        "weights": weight_bytes,
        "gradient_sums": 4,
        "float32_weights": 4 if weight_bytes < 4 else 0,
        "adam_moments": 8,
    }
    total = sum(needed.values()) * trained / 1e9
    device_gb = torch.cuda.get_device_properties(0).total_memory / 1e9 if arguments.device == "cuda" else float("inf")
    offload = total + _ACTIVATIONS_GB > device_gb
    report.add(
        what="arithmetic, all weights",
        trained_billion=trained / 1e9,
        bytes_per_weight=needed,
        total_gb=total,
        device_gb=device_gb,
        offloaded=offload,
        device_gb_if_offloaded=(weight_bytes + 4) * trained / 1e9,
        host_gb_if_offloaded=12 * trained / 1e9,
        gb_per_device_sharded={str(ranks): round(total / ranks, 1) for ranks in (2, 4, 8)},
    )
    measure_ours(
        report,
        policy,
        sampled_groups(policy, arguments.full_rows),
        ceiling=ceiling,
        microbatch=arguments.full_microbatch,
        recomputed=True,
        cpu_offload=offload,
        plain_rate=None,
        what="ours, all weights, state on the host" if offload else "ours, all weights",
    )


def _dtype(device: str) -> torch.dtype:
    """Of the plain loop, which has the policy's own."""
    return chosen_dtype(PolicyConfig(device=device))  # type: ignore[arg-type]


def _prompt_length() -> int:
    """L of the instruction; the words of the small tokenizer are not the model's concern."""
    shape = named_config("tiny", num_text_tokens=10_000, prompt_end_token_id=PROMPT_END_ID, chunk_size=8, action_dim=7)
    return len(PromptEncoder(small_tokenizer(), shape).ids(INSTRUCTION))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "openvla-7b"), default="openvla-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=128, help="decisions per update")
    parser.add_argument("--kinds", choices=tuple(_KINDS), nargs="+", default=["bf16", "fp8", "fp8, language"])
    parser.add_argument("--rank", type=int, default=32, help="of the LoRA adapters")
    parser.add_argument("--microbatches", type=int, nargs="*", default=[16], help="with all activations kept")
    parser.add_argument("--checkpointed-microbatches", type=int, nargs="*", default=[32], help="with activations recomputed")
    parser.add_argument("--full", action="store_true", help="train all weights, too")
    parser.add_argument("--only-full", action="store_true", help="train all weights, and leave LoRA out")
    parser.add_argument("--full-rows", type=int, default=64, help="decisions per update of all weights")
    parser.add_argument("--full-microbatch", type=int, default=8, help="rows of its micro-batches")
    parser.add_argument("--budget-s", type=float, default=420.0, help="nothing new is begun after this")
    arguments = parser.parse_args()
    report = Report(arguments.budget_s)
    ceiling = matrix_ceiling(arguments.device, _dtype(arguments.device))
    report.add(what="device", device=describe_device(arguments.device), ceiling_tflops=ceiling / 1e12)
    if not arguments.only_full:
        measure_lora(report, arguments, ceiling)
    if arguments.full or arguments.only_full:
        report.attempt(partial(measure_full, report, arguments, ceiling), what="ours, all weights")
    report.finish()


if __name__ == "__main__":
    main()
