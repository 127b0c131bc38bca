"""A real env with a real policy: how close the pipeline comes to the slower of the two, and to the serial loop.

    python benchmarks/pipeline/bench_system.py                                       # LIBERO, small policy, two cores
    python -m vla_envs.libero compile --suite libero_spatial --task-ids 0 1 --detail full --out SCENES
    python benchmarks/pipeline/bench_system.py --preset gpu --scene-dir SCENES       # LIBERO on EGL, 7B policy, two minutes

Four measurements with the same workers and the same policy, in chunks (decisions of one slot) per second:

* policy only: one call after another, for every number of rows that the pipeline may ask for; the best of them counts;
* serial: each worker in turn decides and steps;
* pipelined: `Rollout.collect`, its timeline drawn to OUT/timeline.png and OUT/timeline.json.gz (ui.perfetto.dev);
* env only: the same with a policy that costs nothing (random actions).

Everything is warmed up before it is timed: policy calls of every size and prompt length, scenes, the first episodes.
Each measurement is one line of JSON, the last line all of them together.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from loops import MakeSpec, PipelinedLoop, play_serially, started_workers

from vla_train.bench.material import first_observations
from vla_train.bench.measure import PolicyAlone, batch_sizes
from vla_train.config import EnvConfig, PolicyConfig
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.base import Policy
from vla_train.types import EnvDescription, EpisodeSpec, Observation, PolicyOutput

CHUNK_SIZE = 8
TEMPERATURE = 1.6
TIMELINE_S = 10.0
"""How much of the pipelined measurement the picture shows."""


class RandomPolicy:
    """Uniform actions within the env's bounds, at no cost. Its decisions have the model's arrays: episodes that it goes on with
    were begun by the model."""

    version = 0
    observation_keys = ("image",)

    def __init__(self, description: EnvDescription) -> None:
        self.chunk_size, self.action_dim = CHUNK_SIZE, description.action_dim
        self.num_uniforms = CHUNK_SIZE * description.action_dim
        self._low, self._span = description.action_low, description.action_high - description.action_low

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        assert uniforms is not None
        numbers = uniforms.reshape(len(observation), self.chunk_size, self.action_dim)
        return PolicyOutput(
            actions=self._low + self._span * numbers,
            decision={"token_ids": np.zeros(uniforms.shape, np.int32), "logprobs": np.zeros_like(uniforms)},
            policy_version=0,
        )


class SwitchedPolicy:
    """Whichever of several policies is switched on, so that one rollout can be measured with each."""

    version = 0

    def __init__(self, current: Policy) -> None:
        self.current = current
        self.takes_tensors = getattr(current, "takes_tensors", False)
        self.chunk_size, self.action_dim = current.chunk_size, current.action_dim
        self.observation_keys, self.num_uniforms = current.observation_keys, current.num_uniforms

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        return self.current.act(observation, uniforms=uniforms, temperature=temperature)


def spec_maker(description: EnvDescription) -> MakeSpec:
    """Episodes that go through all tasks and their initial states in turn."""

    def make_spec(number: int, group_id: int, sample_id: int) -> EpisodeSpec:
        task_id = description.task_ids[number % len(description.task_ids)]
        states = description.num_init_states.get(task_id)
        state = -1 if states is None else number // len(description.task_ids) % states
        return EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=task_id, init_state_id=state, seed=number)

    return make_spec


def measure(env: EnvConfig, policy_config: PolicyConfig, *, max_policy_batch: int, seconds: float, out: Path) -> None:
    """All four measurements, printed as they come."""
    results: dict[str, Any] = {}

    def report(**values: Any) -> None:
        results.update(values)
        print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}))

    timeline, began = Timeline(), time.perf_counter()
    with started_workers(env, chunk_size=CHUNK_SIZE) as workers:
        description = workers[0].description
        make_spec = spec_maker(description)
        report(workers=env.num_workers, slots=env.num_workers * env.envs_per_worker, worker=env.worker, **env.kwargs)
        from vla_train.policy.simplevla_oft.build import build_policy

        policy = build_policy(policy_config, description, seed=0)
        report(policy=policy_config.size, device=str(policy.device), compiled=policy_config.compile)
        specs = (make_spec(number, 0, 0) for number in itertools.count())
        seen = first_observations(workers, specs, policy.observation_keys)
        alone, rates = PolicyAlone(policy, seen, temperature=TEMPERATURE), {}
        sizes = batch_sizes(env, max_policy_batch)
        for rows in sizes:
            alone.warm_up(rows)
        report(setup_s=time.perf_counter() - began)
        for rows in sizes:
            rates[rows] = alone.chunks_per_s(rows, seconds=seconds / 2 / len(sizes))
            report(**{f"policy_only_{rows}_rows_chunks_per_s": rates[rows]})
        serial = play_serially(workers, policy, make_spec, seconds=seconds)
        report(serial_chunks_per_s=serial.decisions_per_s)

        switch = SwitchedPolicy(policy)
        loop = PipelinedLoop(workers, switch, make_spec, max_policy_batch=max_policy_batch, timeline=timeline)
        pipelined = loop.play(seconds=seconds)
        ended = time.perf_counter()
        report(pipelined_chunks_per_s=pipelined.decisions_per_s, overlap_efficiency=pipelined.efficiency)
        switch.current = RandomPolicy(description)
        env_only = loop.play(seconds=seconds / 2)
        report(env_only_chunks_per_s=env_only.decisions_per_s)

    slower = min(max(rates.values()), env_only.decisions_per_s)
    report(
        pipelined_over_serial=pipelined.decisions_per_s / serial.decisions_per_s,
        pipelined_over_slower=pipelined.decisions_per_s / slower,
        total_s=time.perf_counter() - began,
    )
    title = f"{pipelined.decisions_per_s:.1f} chunks/s, overlap efficiency {pipelined.efficiency:.2f}"
    timeline.plot(out / "timeline.png", since=ended - TIMELINE_S, until=ended, title=title)
    timeline.write_chrome_trace(out / "timeline.json.gz")
    (out / "system.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in results.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu", help="small policy on 2 cores, or 7B on one GPU")
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--tasks", type=int, nargs="+", default=[0, 1], help="task ids")
    parser.add_argument("--scene-dir", help="exported scenes, where LIBERO is not installed")
    parser.add_argument("--detail", choices=("full", "fast"), help="default: fast on the cpu preset, full on the gpu preset")
    parser.add_argument("--engine", choices=("mujoco", "warp"), default="mujoco", help="what simulates")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--worker", choices=("thread", "process"), default="thread", help="where they run")
    parser.add_argument("--num-workers", type=int, help="workers (default 2, gpu: 3)")
    parser.add_argument("--envs-per-worker", type=int, help="slots of each (default 4, gpu: 16)")
    parser.add_argument("--max-policy-batch", type=int, default=64, help="rows of one policy call, at most")
    parser.add_argument("--policy-size", choices=("tiny", "small", "openvla-7b"), help="default: small, gpu: openvla-7b")
    parser.add_argument("--compile", action="store_true", help="compile the policy: faster calls, minutes to warm up")
    parser.add_argument("--max-episode-steps", type=int, default=80, help="of an episode; an iteration plays one in each slot")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the serial and of the pipelined measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_system"))
    arguments = parser.parse_args()
    gpu = arguments.preset == "gpu"
    kwargs = {
        "suite": arguments.suite,
        "task_ids": json.dumps(arguments.tasks),
        "detail": arguments.detail or ("full" if gpu else "fast"),
        "engine": arguments.engine,
        "image_size": str(arguments.image_size),
    }
    if arguments.scene_dir:
        kwargs["scene_dir"] = arguments.scene_dir
    env = EnvConfig(
        id="vla_envs:Libero-v0",
        kwargs=kwargs,
        worker=arguments.worker,
        num_workers=arguments.num_workers or (3 if gpu else 2),
        envs_per_worker=arguments.envs_per_worker or (16 if gpu else 4),
        max_episode_steps=arguments.max_episode_steps,
    )
    size = arguments.policy_size or ("openvla-7b" if gpu else "small")
    policy = PolicyConfig(size=size, random_weights=True, compile=arguments.compile, chunk_size=CHUNK_SIZE)
    measure(env, policy, max_policy_batch=arguments.max_policy_batch, seconds=arguments.seconds, out=arguments.out)


if __name__ == "__main__":
    main()
