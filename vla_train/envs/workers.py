"""The workers of a run: started and closed together, all of the same env."""

import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vla_train.config import EnvConfig
from vla_train.envs.bugs import EnvPackageMissing, EnvRefusal
from vla_train.envs.process import ProcessWorker
from vla_train.envs.worker import START_TIMEOUT_S, EnvWorker, Event, ThreadWorker, WorkerError, WorkerFault
from vla_train.types import EnvDescription


def make_workers(config: EnvConfig, *, chunk_size: int) -> list[EnvWorker]:
    """Start `config.num_workers` workers, in parallel, and wait until all are there.

    Raises:
        EnvRefusal: The env cannot be used as configured; the message says what to change.
        ImportError: The env, or Ray where it is asked for, is not installed.
        WorkerError: A worker died or did not start in time, or the env has a bug, which is the error's cause.
    """
    workers = [_worker_type(config.worker)(config, index=index, chunk_size=chunk_size) for index in range(config.num_workers)]
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    try:
        for worker in workers:
            worker.connect(events.put)
            worker.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        for _ in workers:
            try:
                event = events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise WorkerError(f"{config.id}: a worker did not start within {START_TIMEOUT_S:.0f} s") from None
            if isinstance(event.content, WorkerFault):
                error = event.content.error
                if isinstance(error, EnvRefusal | EnvPackageMissing):
                    raise error
                raise WorkerError(f"{config.id} cannot be made: {type(error).__name__}: {error}") from error
        require_same_env([worker.description for worker in workers])
    except BaseException:
        close_workers(workers)  # and wait: one that is still making its env would meddle with what comes next
        raise
    return list(workers)


def close_workers(workers: Sequence[EnvWorker]) -> None:
    """Close all at the same time: it takes as long as the slowest of them."""
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(lambda worker: worker.close(), workers))


def require_same_env(descriptions: Sequence[EnvDescription]) -> None:
    """Raise `WorkerError` unless any episode may be played on any of these."""
    for index, description in enumerate(descriptions):
        if not descriptions[0].same_env(description):
            raise WorkerError(f"worker {index} has other envs than worker 0: {description} against {descriptions[0]}")


def _worker_type(kind: str) -> type[EnvWorker]:
    if kind == "thread":
        return ThreadWorker
    if kind == "process":
        return ProcessWorker
    if kind == "ray":
        from vla_train.distributed.ray import RayWorker

        return RayWorker
    raise ValueError(f"env.worker must be thread, process or ray, got {kind!r}")
