"""Generation speed of SimpleVLA-OFT against the plain forward of the same shape, in the same run.

    python benchmarks/policy/bench_generation.py                          # 7B on a GPU, about 4 minutes
    python benchmarks/policy/bench_generation.py --size tiny --device cpu --batches 2
    python benchmarks/policy/bench_generation.py --kinds eager compiled vllm "vllm, compiled"    # where vLLM is installed

The plain forward is stock transformers (see plain_openvla.py) with 346 positions, given its pixels ready on the device. Ours
is all of `SimpleVLAOFTPolicy.act`: uint8 images from the host, preprocessing, sampling, log-probs, and the actions back.

`of_ceiling` is the share of what one large bfloat16 matrix product reaches on the same device, of the arithmetic that each
does (the plain one does more). `gap` is |log-prob in sampling - log-prob in training| of the tokens sampled, with logits
spread as a trained policy's are; random weights have no outliers, which quantisation minds most.
"""

import argparse
import time
from functools import partial
from typing import cast

import numpy as np
import torch
from measuring import (
    Report,
    describe_device,
    forward_flops,
    matrix_ceiling,
    release_memory,
    seconds_per_call,
)
from plain_openvla import ACTION_TOKENS, PATCHES, build_plain

from vla_train.config import PolicyConfig
from vla_train.policy.factory import policy_factory
from vla_train.policy.simplevla_oft import named_config
from vla_train.policy.simplevla_oft.fp8 import quantise_rows, scaled_product
from vla_train.policy.simplevla_oft.images import ImageSettings, preprocess
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.policy.simplevla_oft.prompts import PromptEncoder
from vla_train.policy.simplevla_oft.small_tokenizer import small_tokenizer
from vla_train.types import EnvDescription, Observation

PLAIN_POSITIONS = 346
INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"
PLAIN = "plain"
_KINDS: dict[str, dict[str, object]] = {
    "eager": {},
    "compiled": {"compile": True},
    "compiled, LoRA": {"compile": True, "lora_rank": 32},
    "fp8, LoRA": {"compile": True, "lora_rank": 32, "base_dtype": "fp8"},
    "fp8": {"compile": True, "base_dtype": "fp8"},
    "vllm": {"factory": "vllm"},
    "vllm, compiled": {"factory": "vllm", "compile": True},
}
"""Ours, and the options that make them."""
_LOGIT_SPREAD = 4.0
"""Standard deviation of a row's logits over the bins, for the log-probs compared: entropies of 2 to 3 nats at T = 1.6."""
_TRAINING_ROWS = 8
"""Rows of a training micro-batch."""


def measure_plain(report: Report, arguments: argparse.Namespace, ceiling: float) -> None:
    """Chunks per second of the plain forward, by batch."""
    device = arguments.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shape = named_config("openvla-7b", num_text_tokens=0, prompt_end_token_id=3, chunk_size=8, action_dim=7)
    flops = forward_flops(shape, PLAIN_POSITIONS, whole=True)
    plain = build_plain(tiny=arguments.size == "tiny", device=device, dtype=dtype)
    prompt = torch.randint(1, 30000, (1, PLAIN_POSITIONS - PATCHES - ACTION_TOKENS - 1), device=device)

    @torch.no_grad()
    def measure(batch: int) -> None:
        pixels = torch.randn(batch, 6, 224, 224, device=device, dtype=dtype)
        taken = seconds_per_call(partial(plain, pixels, prompt.expand(batch, -1)), arguments.seconds)
        rate = batch / taken
        more = {} if arguments.size == "tiny" else {"of_ceiling": rate * flops / ceiling}
        report.add(what=PLAIN, batch=batch, positions=PLAIN_POSITIONS, ms=taken * 1e3, chunks_per_s=rate, **more)

    for batch in arguments.batches:
        report.attempt(partial(measure, batch), what=PLAIN, batch=batch)


def measure_ours(report: Report, arguments: argparse.Namespace, kind: str, ceiling: float) -> None:
    """`SimpleVLAOFTPolicy.act`, by batch, and the gap of its log-probs."""
    low, high = np.full(7, -1.0, np.float32), np.ones(7, np.float32)
    config = PolicyConfig(size=arguments.size, random_weights=True, device=arguments.device, **_KINDS[kind])
    env = EnvDescription(observations={}, action_low=low, action_high=high)
    policy = cast(SimpleVLAOFTPolicy, policy_factory(config)(config, env, seed=0))
    prompt = PromptEncoder(small_tokenizer(), policy.model.config).ids(INSTRUCTION)
    positions = policy.model.config.num_patches + len(prompt) + ACTION_TOKENS + 1
    flops = forward_flops(policy.model.config, positions, whole=False)
    plain = {record["batch"]: record.get("chunks_per_s") for record in report.records if record["what"] == PLAIN}
    random = np.random.default_rng(0)

    def measure(batch: int) -> None:
        observation, uniforms = _rows(random, batch)
        act = partial(policy.act, observation, uniforms=uniforms, temperature=1.6)
        start = time.perf_counter()
        act()
        first = time.perf_counter() - start
        taken = seconds_per_call(act, arguments.seconds)
        rate = batch / taken
        report.add(
            what=kind,
            batch=batch,
            positions=positions,
            ms=taken * 1e3,
            chunks_per_s=rate,
            **({"of_plain": rate / plain[batch]} if plain.get(batch) else {}),
            of_ceiling=rate * flops / ceiling,
            first_call_s=first,
        )

    for batch in arguments.batches:
        report.attempt(partial(measure, batch), what=kind, batch=batch)
    report.attempt(partial(measure_gap, report, policy, kind), what=f"gap, {kind}")


@torch.no_grad()
def measure_gap(report: Report, policy: SimpleVLAOFTPolicy, kind: str) -> None:
    """Log-probs kept from sampling against those that training computes for the same tokens and weights."""
    observation, uniforms = _rows(np.random.default_rng(1), 32)
    pixels = preprocess(
        torch.from_numpy(observation["image"]).to(policy.device), ImageSettings(image_size=policy.model.config.image_size)
    )
    ids = torch.from_numpy(np.random.default_rng(2).integers(5, 200, (len(observation), 30))).to(policy.device)
    spread = policy.model.action_logits(pixels, ids).float().std(-1).mean()
    policy.model.language_model.lm_head.weight.mul_(_LOGIT_SPREAD / spread)
    policy.version += 1
    output = policy.act(observation, uniforms=uniforms, temperature=1.6)
    tokens = torch.from_numpy(output.decision["token_ids"])
    parts = []
    entropies = []
    for first in range(0, len(observation), _TRAINING_ROWS):
        rows = slice(first, first + _TRAINING_ROWS)
        part = Observation(arrays={"image": observation["image"][rows]}, instructions=observation.instructions[rows])
        evaluated = policy.evaluate(part, {"token_ids": tokens[rows]}, temperature=1.6)
        logprobs, entropy = evaluated["logprobs"], evaluated["entropies"]
        parts.append(logprobs.cpu().numpy())
        entropies.append(float(entropy.mean()))
    difference = output.decision["logprobs"] - np.concatenate(parts)
    report.add(
        what=f"gap, {kind}",
        mean_abs=float(np.abs(difference).mean()),
        p99_abs=float(np.quantile(np.abs(difference), 0.99)),
        max_abs=float(np.abs(difference).max()),
        kl_nats=float(difference.mean()),
        entropy_nats=float(np.mean(entropies)),
    )


def measure_parts(report: Report, arguments: argparse.Namespace, ceiling: float) -> None:
    """What the products in FP8 reach on their own, and what preparing images costs."""
    device, batch = arguments.device, max(arguments.batches)

    def measure_product() -> None:
        size = 8192
        factors = [tensor for _ in range(2) for tensor in quantise_rows(torch.randn(size, size, device=device))]
        rate = 2 * size**3 / seconds_per_call(lambda: scaled_product(*factors), 1.0)
        report.add(what="fp8 product", tflops=rate / 1e12, of_ceiling=rate / ceiling)

    def measure_images(jpeg: bool) -> None:
        frames = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8, device=device)
        taken = seconds_per_call(partial(preprocess, frames, ImageSettings(image_size=224, jpeg=jpeg)), 0.5)
        report.add(what="images", batch=batch, jpeg=jpeg, ms=taken * 1e3)

    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        report.attempt(measure_product, what="fp8 product")
    for jpeg in (False, True):
        report.attempt(partial(measure_images, jpeg), what="images", batch=batch, jpeg=jpeg)


def summarise(report: Report) -> None:
    """Each at its best batch."""
    best: dict[str, float] = {}
    for record in report.records:
        rate = record.get("chunks_per_s")
        if isinstance(rate, float):
            best[str(record["what"])] = max(rate, best.get(str(record["what"]), 0.0))
    if PLAIN in best:
        ratios = {f"{kind}_of_plain": best[kind] / best[PLAIN] for kind in _KINDS if kind in best}
        report.add(what="best batch, chunks/s", **best, **ratios)


def _rows(random: np.random.Generator, batch: int) -> tuple[Observation, np.ndarray]:
    images = random.integers(0, 256, (batch, 256, 256, 3), np.uint8)
    return Observation(arrays={"image": images}, instructions=(INSTRUCTION,) * batch), random.random(
        (batch, ACTION_TOKENS), np.float32
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "openvla-7b"), default="openvla-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--kinds", choices=tuple(_KINDS), nargs="+", default=[kind for kind in _KINDS if "vllm" not in kind])
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--budget-s", type=float, default=480.0, help="nothing new is begun after this")
    parser.add_argument("--quick", action="store_true", help="batches 8, 16 and 128, half the time each, no eager")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.seconds, arguments.kinds = [8, 16, 128], 1.0, ["compiled", "fp8, LoRA"]
    report = Report(arguments.budget_s)
    ceiling = matrix_ceiling(arguments.device, torch.bfloat16 if arguments.device == "cuda" else torch.float32)
    report.add(what="device", device=describe_device(arguments.device), ceiling_tflops=ceiling / 1e12)
    report.attempt(partial(measure_plain, report, arguments, ceiling), what=PLAIN)
    for kind in arguments.kinds:
        report.attempt(partial(measure_ours, report, arguments, kind, ceiling), what=kind)
        torch._dynamo.reset()
        release_memory()
    measure_parts(report, arguments, ceiling)
    summarise(report)
    report.finish()


if __name__ == "__main__":
    main()
