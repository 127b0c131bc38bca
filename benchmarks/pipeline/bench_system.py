"""A real env with a real policy: how close the pipeline comes to the slower of the two, and to the serial loop.

    python benchmarks/pipeline/bench_system.py                                             # LIBERO, tiny policy, any machine
    python benchmarks/pipeline/bench_system.py --preset gpu --scene-dir SCENES             # LIBERO on EGL, 7B policy

Four measurements with the same components in one process, in chunks (decisions of one slot) per second:

* env only: the pipeline with a policy that costs nothing (random actions);
* policy only: batches as the pipeline makes them (one env group) and larger, the best of them;
* serial: each env group in turn decides and steps;
* pipelined: `Rollout.collect`, its timeline drawn to OUT/timeline.png and OUT/timeline.json.gz.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from loops import MakeSpec, play_pipelined, play_serially

from vla_train.config import EnvConfig, PolicyConfig
from vla_train.pipeline.env_group import EnvDescription
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.workers import make_workers
from vla_train.policy.base import Policy
from vla_train.types import EpisodeSpec, Observation, PolicyOutput


class RandomPolicy:
    """Uniform actions within the env's bounds, at no cost."""

    version = 0

    def __init__(self, description: EnvDescription, chunk_size: int) -> None:
        self.chunk_size, self.action_dim = chunk_size, description.action_dim
        self._low, self._span = description.action_low, description.action_high - description.action_low

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        assert uniforms is not None
        numbers = uniforms.reshape(len(observation), self.chunk_size, self.action_dim)
        return PolicyOutput(
            actions=self._low + self._span * numbers,
            token_ids=np.zeros(uniforms.shape, np.int32),
            logprobs=np.zeros(uniforms.shape, np.float32),
            policy_version=0,
        )


def spec_maker(description: EnvDescription) -> MakeSpec:
    """Episodes that go through all tasks and their initial states in turn."""

    def make_spec(number: int, group_id: int, sample_id: int) -> EpisodeSpec:
        task_id = description.task_ids[number % len(description.task_ids)]
        states = description.num_init_states.get(task_id)
        state = -1 if states is None else number // len(description.task_ids) % states
        return EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=task_id, init_state_id=state, seed=number)

    return make_spec


def policy_only(policy: Policy, description: EnvDescription, rows: int, seconds: float) -> float:
    """Chunks per second of one policy call after another on noise images."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (rows, *description.image_shape), np.uint8)
    texts = list(description.instructions.values()) or ["do the task"]
    observation = Observation(images=images, instructions=tuple(texts[row % len(texts)] for row in range(rows)))
    uniforms = random.random((rows, policy.chunk_size * policy.action_dim), dtype=np.float32)
    policy.act(observation, uniforms=uniforms, temperature=1.6)
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        policy.act(observation, uniforms=uniforms, temperature=1.6)
        calls += 1
    return calls * rows / (time.perf_counter() - start)


def measure(
    env: EnvConfig,
    make_policy: Callable[[EnvDescription], Policy],
    *,
    chunk_size: int,
    max_policy_batch: int,
    seconds: float,
    out: Path,
) -> dict[str, Any]:
    """All four measurements, printed as they come."""
    probe = make_workers(EnvConfig(**{**vars(env), "num_groups": 1}), chunk_size=chunk_size, seed=0)
    description = probe[0].description
    probe[0].close()
    make_spec = spec_maker(description)
    results: dict[str, Any] = {"slots": env.num_groups * env.envs_per_group, "env groups": env.num_groups}

    def report(name: str, value: Any) -> None:
        results[name] = value
        print(f"{name:<42}{value:10.2f}" if isinstance(value, float) else f"{name:<42}{value}", flush=True)

    random_policy = RandomPolicy(description, chunk_size)
    report("env only, chunks/s", play_pipelined(env, random_policy, make_spec, seconds=seconds).decisions_per_s)
    policy = make_policy(description)
    sizes = sorted({min(env.envs_per_group * factor, max_policy_batch) for factor in (1, 2, env.num_groups)})
    for rows in sizes:
        report(f"policy only, batch {rows}, chunks/s", policy_only(policy, description, rows, seconds / len(sizes)))
    best = max(results[f"policy only, batch {rows}, chunks/s"] for rows in sizes)
    report("serial, chunks/s", play_serially(env, policy, make_spec, seconds=seconds).decisions_per_s)
    timeline = Timeline()
    pipelined = play_pipelined(env, policy, make_spec, seconds=seconds, max_policy_batch=max_policy_batch, timeline=timeline)
    report("pipelined, chunks/s", pipelined.decisions_per_s)
    report("overlap efficiency", pipelined.efficiency)
    report("pipelined / serial", pipelined.decisions_per_s / results["serial, chunks/s"])
    report("pipelined / slower of env and policy", pipelined.decisions_per_s / min(best, results["env only, chunks/s"]))
    now = time.perf_counter()
    timeline.plot(out / "timeline.png", since=now - min(seconds, 10.0), until=now, title="rollout")
    timeline.write_chrome_trace(out / "timeline.json.gz")
    (out / "system.json").write_text(json.dumps(results, indent=1))
    print(f"written to {out}: system.json, timeline.png, timeline.json.gz (ui.perfetto.dev)")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu", help="tiny policy on 2 cores, or 7B on one GPU")
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--scene-dir", help="exported scenes, where LIBERO is not installed")
    parser.add_argument("--detail", choices=("full", "fast"), help="default: fast on the cpu preset, full on the gpu preset")
    parser.add_argument("--num-groups", type=int, help="env groups (default 2, gpu: 3)")
    parser.add_argument("--envs-per-group", type=int, help="slots of each (default 4, gpu: 16)")
    parser.add_argument("--max-policy-batch", type=int, default=64, help="rows of one policy call, at most")
    parser.add_argument("--policy-size", choices=("tiny", "small", "openvla-7b"), help="default: tiny, gpu: openvla-7b")
    parser.add_argument("--compile", action="store_true", help="compile the policy")
    parser.add_argument("--max-episode-steps", type=int, default=160, help="env steps; short, so that refill is measured too")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_system"))
    arguments = parser.parse_args()
    gpu = arguments.preset == "gpu"
    kwargs = {"suite": arguments.suite, "detail": arguments.detail or ("full" if gpu else "fast")}
    if arguments.scene_dir:
        kwargs["scene_dir"] = arguments.scene_dir
    env = EnvConfig(
        id="Libero-v0",
        kwargs=kwargs,
        num_groups=arguments.num_groups or (3 if gpu else 2),
        envs_per_group=arguments.envs_per_group or (16 if gpu else 4),
        max_episode_steps=arguments.max_episode_steps,
    )
    policy = PolicyConfig(
        size=arguments.policy_size or ("openvla-7b" if gpu else "tiny"), compile=arguments.compile, chunk_size=8
    )

    def make_policy(description: EnvDescription) -> Policy:
        from vla_train.policy.torch_policy import build_policy

        return build_policy(
            policy, action_low=description.action_low, action_high=description.action_high, suite=description.suite, seed=0
        )

    measure(
        env,
        make_policy,
        chunk_size=policy.chunk_size,
        max_policy_batch=arguments.max_policy_batch,
        seconds=arguments.seconds,
        out=arguments.out,
    )


if __name__ == "__main__":
    main()
