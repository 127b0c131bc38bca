"""What a chunk costs the process that drives a cluster, besides the conductor's own code: calls of Ray, copies of pictures.

    python -m benchmarks.pipeline.driver_costs          # half a minute; starts Ray on this machine

Prints the numbers of `cluster_spec.Driver`, and the latency of `Network`. Seconds of Python are those of the thread on a core;
copies and the latency are seconds that pass.
"""

import threading
import time
from collections.abc import Callable

import numpy as np
import ray

from vla_train.envs.shard import ShardResult
from vla_train.envs.worker import Step
from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.types import EpisodeSpec, Observation, PolicyOutput

SLOTS, ROWS, PIXELS, TOKENS = 8, 64, 256, 56
_SPEC = EpisodeSpec(group_id=3, sample_id=1, task_id=0, init_state_id=0, seed=0)


class Answers:
    """Answers as workers and replicas do, and works for none of it."""

    def execute(self, command: Step) -> ShardResult:
        images = np.zeros((SLOTS, PIXELS, PIXELS, 3), np.uint8)
        return ShardResult.of_reset({"image": images}, ("pick up the black bowl and place it on the plate",) * SLOTS)

    def act(self, observation: Observation, uniforms: np.ndarray) -> PolicyOutput:
        tokens = np.zeros((ROWS, TOKENS), np.float32)
        return PolicyOutput(
            actions=np.zeros((ROWS, 8, 7), np.float32), decision={"token_ids": tokens, "logprobs": tokens}, policy_version=0
        )


def mean_s(work: Callable[[], object], clock: Callable[[], float], *, times: int = 200) -> float:
    """Seconds of one call, the first tenth not counted."""
    for _ in range(times // 10):
        work()
    began = clock()
    for _ in range(times):
        work()
    return (clock() - began) / times


def timed_call(call: Callable[[], ray.ObjectRef], *, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of calling an actor, and of taking its answer once it is there."""
    sending, receiving, times = 0.0, 0.0, 200
    for number in range(-times // 10, times):
        began = clock()
        reference = call()
        called = clock()
        ray.wait([reference])
        arrived = clock()
        ray.get(reference)
        if number >= 0:
            sending, receiving = sending + called - began, receiving + clock() - arrived
    return sending / times, receiving / times


def started_thread() -> None:
    """A thread for each command is what `RayWorker` starts; it ends by itself."""
    threading.Thread(target=lambda: None).start()


def main() -> None:
    """Measure, and print."""
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    actor = ray.remote(Answers).options(num_cpus=0).remote()
    command = Step(actions=np.zeros((SLOTS, 8, 7), np.float32), active=np.ones(SLOTS, bool), keys=("image",))
    sent, received = timed_call(lambda: actor.execute.remote(command), clock=time.thread_time)
    there_and_back = mean_s(lambda: ray.get(actor.execute.remote(command)), time.perf_counter)
    thread = mean_s(started_thread, time.perf_counter)
    seen = Observation(arrays={"image": np.zeros((ROWS, PIXELS, PIXELS, 3), np.uint8)}, instructions=("",) * ROWS)
    uniforms = np.zeros((ROWS, TOKENS), np.float32)
    put, _ = timed_call(lambda: actor.act.remote(seen, uniforms), clock=time.perf_counter)
    _, answered = timed_call(lambda: actor.act.remote(seen, uniforms), clock=time.thread_time)
    episode = [np.ones((PIXELS, PIXELS, 3), np.uint8) for _ in range(ROWS)]
    copy = mean_s(lambda: np.stack(episode), time.perf_counter) / ROWS  # into new memory, as a batch and a trajectory are
    number = mean_s(lambda: sampling_numbers(0, _SPEC, 5, TOKENS), time.thread_time)
    ray.shutdown()
    lines = (
        ("send_s", sent + thread, f"a command: {1e6 * sent:.0f} to call the actor, {1e6 * thread:.0f} for a thread"),
        ("receive_s", received, "a result"),
        ("number_s", number, "a row"),
        ("call_s", answered, f"an answer of {ROWS} rows"),
        ("gather_s", copy + put / ROWS, f"a row: {1e6 * copy:.0f} to copy it, {1e6 * put / ROWS:.0f} into the object store"),
        ("record_s", copy, "a row"),
        ("latency_s", there_and_back / 2, "a way: half of a command and its result, on one machine"),
    )
    for name, seconds, of_what in lines:
        print(f"{name:10s} {1e6 * seconds:5.0f} us {of_what}")


if __name__ == "__main__":
    main()
