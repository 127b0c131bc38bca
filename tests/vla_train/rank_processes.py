"""Runs a function on several ranks: processes on this machine that join as torchrun's do, and talk through gloo.

The rendezvous is a store that this process keeps, on a port that the system picked: nothing can take that port away between
its choice and its use. Processes are forked from one that has imported torch already, so that each starts in no time.
"""

import multiprocessing
import multiprocessing.connection
import os
import time
import traceback
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.distributed as dist

from vla_train.trainer.parallel import Ranks, join_ranks

_PRELOADED = [
    *("vla_train.trainer.checkpoint", "vla_train.policy.simplevla_oft.policy", "vla_train.policy.simplevla_oft.lora"),
    *("torch.distributed.tensor", "torch._dynamo"),
]
_TIMEOUT_S = 300
"""Only a deadlock takes that long."""


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any, lost: Collection[int] = ()) -> list[Any]:
    """What `function(ranks, *arguments)` returns on each of `size` ranks.

    Args:
        lost: Ranks that give no result: their processes end or stand still. The others do not wait for them.

    Raises:
        AssertionError: It raised on one of them, or they wait for each other; the message holds the traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for rank in range(size):
        receiving, sending = context.Pipe(duplex=False)
        processes.append(
            context.Process(target=_run_rank, args=(rank, size, store.port, sending, function, arguments, not lost))
        )
        processes[-1].start()
        sending.close()  # so that the pipe ends with the process
        pipes.append(receiving)
    try:
        return _results(pipes, lost)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _results(pipes: list[multiprocessing.connection.Connection], lost: Collection[int]) -> list[Any]:
    results: dict[int, Any] = dict.fromkeys(lost)
    deadline = time.monotonic() + _TIMEOUT_S
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = multiprocessing.connection.wait(waiting, timeout=deadline - time.monotonic())
        assert ready, f"ranks {sorted(results)} of {len(pipes)} are done, the others wait for each other"
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                value, failure = pipe.recv()
            except EOFError:
                raise AssertionError(f"rank {rank} died") from None
            assert failure is None, f"rank {rank}: {failure}"
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _run_rank(
    rank: int,
    size: int,
    port: int,
    results: multiprocessing.connection.Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    together: bool,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    try:
        ranks: Ranks = join_ranks()
        answer = function(ranks, *arguments), None
        if together:
            ranks.barrier()  # nobody leaves while another still needs it
    except BaseException:
        answer = None, traceback.format_exc()
    results.send(answer)
    results.close()
    time.sleep(_TIMEOUT_S)  # until the parent has what it needs: an early end looks like a fault to the others
