"""Training on several ranks: who holds which weights, and how sums are taken over all of them.

    shard      every rank holds 1/W of each weight (FSDP2); layers are gathered while they run, gradients reduced as they come
    replicate  every rank holds all weights; the gradients of an update are added up once (adapters: little to exchange)

Gradients are sums over all ranks, not means: the weights of the loss are normalised over all ranks already.
Tensors that exist once per rank and not in parts (the images of a batch, say) are exchanged on the host, through gloo.

Ranks begin and end everything together: work that each does by itself stands in an `apart` block, at whose end all learn what
ended it on any of them (see `roll_call`).
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.errors import RunError
from vla_train.trainer.rank_lines import open_lines
from vla_train.trainer.roll_call import RollCall

_TIMEOUT = timedelta(hours=1)
"""The longest that a collective may take: in the background, ranks wait for the one that writes longest."""
_SHARD_ABOVE = 0.1
"""Sharding pays where more than this fraction of the weights is trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """One-dimensional; None for one process."""
    roll_call: RollCall | None = None
    """How they end together; None for one process."""
    background: dist.ProcessGroup | None = None
    """What threads other than the main one talk through, one at a time; None for one process."""

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A block that this rank does by itself, however long it takes; after it, all ranks meet.

        All ranks must enter it. What is raised in it on one rank ends it on all: the others are asked to break off what a
        signal may break off.

        Raises:
            RankLostError: Another rank is gone.
            RunError, KeyboardInterrupt: It ended so on another rank; or whatever it raised here.
        """
        if self.roll_call is None:
            yield
            return
        ended: BaseException | None = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            ended = error
            self.roll_call.call()
        if self.roll_call.meet(asked=ended is not None):
            raise _first_of(ended, self.gather_objects(_as_told(ended)))

    @property
    def call(self) -> Callable[[], None] | None:
        """See `RollCall.call`; None for one process."""
        return None if self.roll_call is None else self.roll_call.call

    def leave(self, text: str | None = None) -> None:
        """See `RollCall.leave`."""
        if self.roll_call is not None:
            self.roll_call.leave(text)

    def gather_objects(self, value: Any, *, background: bool = False) -> list[Any]:
        """Every rank's value, by rank. All ranks must call this, from their main threads or all in the `background`."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.background if background else None)
        return values

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place. All ranks must call this."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over all ranks, in place. All ranks must call this."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            self.sum_(torch.zeros(1))


ONE_RANK = Ranks()


def _as_told(ended: BaseException | None) -> tuple[type[RunError], str] | None:
    """What other ranks are told of what ended a block here; nothing of an interruption."""
    if ended is None or isinstance(ended, KeyboardInterrupt):
        return None
    return (type(ended), str(ended)) if isinstance(ended, RunError) else (RunError, f"{type(ended).__name__}: {ended}")


def _first_of(ended: BaseException | None, told: list[tuple[type[RunError], str] | None]) -> BaseException:
    """What to raise: this rank's own error, another's, or an interruption."""
    if ended is not None and not isinstance(ended, KeyboardInterrupt):
        return ended
    for rank, other in enumerate(told):
        if other is not None:
            kind, text = other
            return kind(f"rank {rank}: {text}")
    return ended or KeyboardInterrupt()


def join_ranks() -> Ranks:
    """Join the processes that torchrun started (it says in the environment who they are); one process stays alone.

    Each rank takes the CUDA device of its LOCAL_RANK where there is one, and its share of the cores.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ONE_RANK
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_TIMEOUT)
        else:
            dist.init_process_group("gloo", timeout=_TIMEOUT)
    background = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    ranks = Ranks(rank=dist.get_rank(), size=size, mesh=make_mesh(size), background=background)
    share_cores(ranks)
    return replace(ranks, roll_call=RollCall(ranks.rank, open_lines(ranks.rank, size, ranks.gather_objects)))


def share_cores(ranks: Ranks) -> None:
    """Compute with one thread for each core of this rank's share, where torchrun would have all ranks compute with one thread.

    Ranks that may use the same cores of a host share them. How many threads OMP_NUM_THREADS wants is left as it is, if it is
    more than the one that torchrun sets where nobody has set it.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    own = socket.gethostname(), cores
    sharing = ranks.gather_objects(own).count(own)
    if "LOCAL_WORLD_SIZE" in os.environ and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(cores) // sharing))


def make_mesh(size: int) -> DeviceMesh:
    """The mesh of all ranks of an initialised process group."""
    return dist.init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (size,))


def share_of_rank(config: RolloutConfig, ranks: Ranks) -> RolloutConfig:
    """What one of several ranks plays: its part of each iteration's groups."""
    if config.groups_per_iteration % ranks.size:
        raise ValueError(f"rollout.groups_per_iteration {config.groups_per_iteration} must be a multiple of {ranks.size} ranks")
    return replace(config, groups_per_iteration=config.groups_per_iteration // ranks.size)


def useful_slots(env: EnvConfig, rollout: RolloutConfig) -> EnvConfig:
    """As many envs as can play at once: where nothing is played ahead, the episodes of an iteration are all there are."""
    if not rollout.deterministic:
        return env
    episodes = rollout.groups_per_iteration * rollout.group_size
    return replace(env, envs_per_worker=min(env.envs_per_worker, -(-episodes // env.num_workers)))


def distribute(module: nn.Module, ranks: Ranks, *, sharding: Literal["auto", "shard", "replicate"]) -> None:
    """Spread a module over the ranks, in place, before its optimizer is made.

    Its transformer blocks (`module.blocks`, where it names them) are sharded one by one, so that at most one or two are
    gathered at a time. Rank 0's weights are taken by all.
    """
    if ranks.size == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        whole = tensor.detach()
        dist.broadcast(whole.view(torch.uint8) if whole.itemsize == 1 else whole, src=0)  # no backend knows FP8
    if sharding == "auto":
        # Quantised weights are no parameters; a module that has some says how many it has in all.
        total = getattr(module, "num_weights", None) or sum(parameter.numel() for parameter in module.parameters())
        trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        sharding = "shard" if trained > _SHARD_ABOVE * total else "replicate"
    if sharding == "shard":
        precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for block in getattr(module, "blocks", ()):
            fully_shard(block, mesh=ranks.mesh, mp_policy=precision)
        fully_shard(module, mesh=ranks.mesh, mp_policy=precision)


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory; all of it where it is not sharded."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def full_tensor(part: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor of which this rank holds `part`, laid out as `like` is. All ranks must call this."""
    if not isinstance(like, DTensor):
        return part
    whole = DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return whole.full_tensor()


def own_rows(like: Tensor) -> slice:
    """The rows of a tensor that this rank holds; all of them where it is not sharded."""
    if not isinstance(like, DTensor):
        return slice(None)
    share = -(-like.shape[0] // like.device_mesh.size())  # as `torch.chunk` cuts: the last ranks may have fewer, or none
    first = min(share * like.device_mesh.get_local_rank(), like.shape[0])
    return slice(first, min(first + share, like.shape[0]))


def squared_norm(parts: Iterable[Tensor], device: torch.device) -> Tensor:
    """Sum of squares of all elements, as a float32 scalar; 0 of nothing."""
    total = torch.zeros((), device=device)
    for part in parts:
        total += torch.linalg.vector_norm(part).square()
    return total
