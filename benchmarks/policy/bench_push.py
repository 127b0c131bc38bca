"""Seconds of a push of weights to replicas in Ray actors: straight, from GPU to GPU, against Ray's object store.

    python benchmarks/policy/bench_push.py                                     # 7B, the first GPU pushes to the second
    python benchmarks/policy/bench_push.py --replicas 3                        # to three others
    python benchmarks/policy/bench_push.py --size tiny --device cpu --repeats 3

For adapters and for all weights, a JSON line for each way:

    push_s     of `load_weights`: until all replicas have them
    still_s    that the replicas do not decide: from their last decision before the push to the end of the first one after it,
               less what a decision takes
    first_s    of the first push, which makes the channel
    same       whether two sets of weights decided differently, and each as when it had come by the other way

Whether training and sampling had better share GPUs is a question to a whole run: see docs/pipeline.md.
"""

import argparse
import os
import time
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from bench_update import make_policy
from measuring import Report, describe_device, release_memory, wait
from torch import Tensor

from vla_train.distributed.ray import connect
from vla_train.distributed.ray_policy import RayPolicy
from vla_train.types import Observation

_WAYS = ("object store", "channel")
_KINDS: dict[str, dict[str, object]] = {"adapters": {"lora_rank": 32}, "all weights": {"lora_rank": 0}}
"""What is trained, and the options that make it so."""


def divide_gpus(replicas: int) -> None:
    """This process keeps the first of the GPUs that it may use; a Ray cluster of its own gets as many as replicas need."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]
    if len(gpus) <= replicas:
        raise SystemExit(f"{replicas} replicas and a trainer need {1 + replicas} GPUs; there are {len(gpus)}: try --device cpu")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[1 : 1 + replicas])
    connect()
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0]


class Sampling:
    """Replicas, and rows for them to decide."""

    def __init__(self, policy: RayPolicy, rows: int) -> None:
        random = np.random.default_rng(0)
        self.policy = policy
        self._seen = Observation(
            arrays={"image": random.integers(0, 256, (rows, 256, 256, 3), np.uint8)}, instructions=("open the drawer",) * rows
        )

    def decide(self) -> np.ndarray:
        """Greedily, so that equal weights decide equally."""
        return self.policy.act(self._seen, uniforms=None, temperature=1.0).actions

    def seconds_per_decision(self) -> float:
        """Median of five, after two more."""
        times = []
        for _ in range(7):
            start = time.perf_counter()
            self.decide()
            times.append(time.perf_counter() - start)
        return float(np.median(times[2:]))

    def push(self, weights: Mapping[str, Tensor], version: int) -> tuple[float, float]:
        """Push seconds, and seconds from the decision before to the end of the one after."""
        self.decide()
        wait()
        start = time.perf_counter()
        self.policy.load_weights(weights, version=version)
        pushed = time.perf_counter()
        self.decide()
        return pushed - start, time.perf_counter() - start


def measure(report: Report, arguments: argparse.Namespace, kind: str) -> None:
    """One line for each way."""
    options = {"compile": False, **_KINDS[kind]}
    trained = make_policy(arguments, **options).trainable_module()
    weights = {name: weight.detach() for name, weight in trained.named_parameters() if weight.requires_grad}
    other = {name: weight + 0.01 for name, weight in weights.items()}
    on_gpu = arguments.device == "cuda"
    policy = RayPolicy(partial(make_policy, arguments, **options), replicas=arguments.replicas, use_gpu=on_gpu)
    sampling = Sampling(policy, arguments.rows)
    decided: list[np.ndarray] = []  # by two sets of weights
    try:
        for way in _WAYS:
            policy._try_channel = way == "channel"
            first_s, _ = sampling.push(other, 1)
            by_other = sampling.decide()
            decision_s = sampling.seconds_per_decision()
            times = [sampling.push(weights if index % 2 else other, 2 + index) for index in range(arguments.repeats)]
            sampling.push(weights, 2 + arguments.repeats)
            decided.append(np.stack([by_other, sampling.decide()]))
            push_s, still_s = np.median(times, axis=0).tolist()
            report.add(
                what=kind,
                way=way if policy._channel is not None or way == "object store" else "object store, as there is no channel",
                replicas=arguments.replicas,
                gigabytes=sum(weight.nbytes for weight in weights.values()) / 1e9,
                tensors=len(weights),
                push_s=push_s,
                still_s=still_s - decision_s,
                first_s=first_s,
                decision_s=decision_s,
                same=bool((decided[0] == decided[-1]).all() and (decided[0][0] != decided[0][1]).any()),
            )
    finally:
        policy.close()
        release_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "openvla-7b"), default="openvla-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--replicas", type=int, default=1, help="each has a GPU of its own")
    parser.add_argument("--rows", type=int, default=8, help="of a decision")
    parser.add_argument("--repeats", type=int, default=5, help="pushes of each kind, after a first one")
    parser.add_argument("--kinds", choices=tuple(_KINDS), nargs="+", default=list(_KINDS))
    parser.add_argument("--budget-s", type=float, default=420.0, help="nothing new is begun after this")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        divide_gpus(arguments.replicas)
    else:
        connect()
    report = Report(arguments.budget_s)
    report.add(what="device", device=describe_device(arguments.device))
    for kind in arguments.kinds:
        report.attempt(partial(measure, report, arguments, kind), what=kind)
    report.finish()


if __name__ == "__main__":
    main()
