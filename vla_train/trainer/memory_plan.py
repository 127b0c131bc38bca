"""How large a micro-batch may be, and how many activations are recomputed in its backward pass: by the memory of the GPU.

    measure   peak memory of a micro-batch of two rows, and of four: what each row takes, and what comes on top
    choose    from that of kept and of recomputed activations, and the memory that is free
    try       what was chosen, as a CUDA graph where the policy makes one; with less where it does not fit after all,
              since memory is in pieces

More rows gain little once there are a few, recomputing costs a third: so activations are kept where `_ENOUGH_ROWS` rows fit,
and those of no more blocks recomputed than `_FEW_ROWS` rows need otherwise. Neither changes what is learnt.

Ranks that share the weights compute each micro-batch together, so one that ran out of memory would leave the others waiting:
nothing is tried there that could well fail. Costs are measured with most activations recomputed, and the plan is for the rank
with the least memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from vla_train.gpu_memory import renew_limit
from vla_train.trainer.parallel import Ranks

_MOST_ROWS = 16
"""Of a large model; of a small one as many as take a quarter of the memory."""
_MOST_ROWS_AT_ALL = 256
_ENOUGH_ROWS = 4
_FEW_ROWS = 8
_NEVER = 1 << 50
"""Bytes of a row that no GPU has."""
_LEAST = 1 << 24
"""Bytes below which less is none."""
_TRIES = 3
"""A policy that makes CUDA graphs has made one then, and keeps the memory."""
_SPARE = 0.05
"""Share of the GPU's memory that is left free: evaluations may be larger, and simulators grow."""
_MEASURED_ROWS = (2, 4)
_PROBED = 0.25
"""Share of the blocks whose activations are kept to measure what they take."""
_UNTRIED = 0.9
"""Share of the memory that a plan which is not tried may use: memory is in pieces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Memory of a micro-batch, in bytes."""

    per_row: int
    besides: int

    def of(self, rows: int) -> int:
        """With so many rows."""
        return self.besides + rows * self.per_row


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What a trainer does with the memory."""

    microbatch_rows: int
    recomputed: float
    """Share of the blocks whose activations are recomputed."""

    def __str__(self) -> str:
        kept = f"activations of {self.recomputed:.0%} of the blocks recomputed" if self.recomputed else "all activations kept"
        return f"micro-batches of {self.microbatch_rows} rows, {kept}"


def choose(kept: Cost, recomputed: Cost, *, available: int, rows: int | None = None) -> MemoryPlan:
    """The plan for `available` bytes; `rows` where they are given."""

    def fit(cost: Cost) -> int:
        return max(0, available - cost.besides) // max(1, cost.per_row)

    if fit(kept) >= (rows or _ENOUGH_ROWS):
        most = max(_MOST_ROWS, min(fit(kept) // 4, _MOST_ROWS_AT_ALL))
        return MemoryPlan(microbatch_rows=rows or min(fit(kept), most), recomputed=0.0)
    wanted = rows or max(1, min(fit(recomputed), _FEW_ROWS))
    room = available - recomputed.besides - wanted * recomputed.per_row
    gain = wanted * (kept.per_row - recomputed.per_row)
    share = 1.0 - max(0.0, min(1.0, room / gain)) if gain > 0 else 1.0
    return MemoryPlan(microbatch_rows=wanted, recomputed=share)


def plan_microbatches(
    run: Callable[[int], None],
    recompute: Callable[[float], None] | None,
    device: torch.device,
    *,
    owed: int = 0,
    rows: int | None = None,
) -> MemoryPlan:
    """Measure, choose and try.

    Args:
        run: Computes a micro-batch of so many rows, forward and backward.
        recompute: Sets the share of the blocks whose activations are recomputed, and is left as planned; None where that is
            not to be chosen.
        device: A CUDA device.
        owed: Bytes that will be taken later, and for good.
        rows: Of a micro-batch, where they are given.

    Raises:
        torch.OutOfMemoryError: Not even the smallest micro-batch fits.
    """
    set_share = recompute or (lambda share: None)
    costs = []
    for share in (1.0, 0.0) if recompute else (0.0,):
        set_share(share)
        try:
            costs.append(measure(run, device))
        except torch.OutOfMemoryError:
            costs.append(Cost(per_row=_NEVER, besides=0))
            torch.cuda.empty_cache()
    recomputed, kept = costs[0], costs[-1]
    available = available_bytes(device) - owed
    while True:
        plan = choose(kept, recomputed, available=available, rows=rows)
        if recompute is None:
            plan = replace(plan, recomputed=0.0)
        set_share(plan.recomputed)
        try:
            _try(run, plan.microbatch_rows, device, kept_free=owed)
        except torch.OutOfMemoryError:
            if available <= 0:
                raise
            available = available * 9 // 10 if available > _LEAST else 0
        else:
            return plan
        torch.cuda.empty_cache()


def plan_shared_microbatches(
    run: Callable[[int], None],
    recompute: Callable[[float], None] | None,
    device: torch.device,
    *,
    ranks: Ranks,
    owed: int = 0,
    rows: int | None = None,
) -> MemoryPlan:
    """The same for ranks that share the weights, on all of which it must be called: measure a little, and choose.

    Args: see `plan_microbatches`.

    Raises:
        torch.OutOfMemoryError: Not even what is measured fits.
    """
    set_share = recompute or (lambda share: None)
    set_share(1.0)
    if rows is None or rows >= max(_MEASURED_ROWS):
        few = min(_MEASURED_ROWS)
        recomputed = measure(run, device)
    else:
        few = rows
        recomputed = Cost(per_row=-(-measure_peak(run, few, device) // few), besides=0)
    kept = recomputed
    if recompute is not None:
        set_share(1.0 - _PROBED)
        more = measure_peak(run, few, device) - recomputed.of(few)
        # Where that is nothing, a quarter of the blocks may have been none.
        kept = replace(recomputed, per_row=recomputed.per_row + int(more / few / _PROBED) if more > 0 else _NEVER)
    told = ranks.gather_objects((recomputed, kept, available_bytes(device) - owed))
    recomputed, kept = (_most(costs[place] for costs in told) for place in (0, 1))
    available = min(costs[2] for costs in told)
    plan = choose(kept, recomputed, available=int(_UNTRIED * available), rows=rows)
    if recompute is None:
        plan = replace(plan, recomputed=0.0)
    set_share(plan.recomputed)
    return plan


def _most(costs: Iterable[Cost]) -> Cost:
    """At least that of each."""
    costs = list(costs)
    return Cost(per_row=max(cost.per_row for cost in costs), besides=max(cost.besides for cost in costs))


def _try(run: Callable[[int], None], rows: int, device: torch.device, *, kept_free: int) -> None:
    """Run as an update does, with so many bytes less."""
    held = torch.empty(kept_free, dtype=torch.uint8, device=device)
    for _ in range(_TRIES):
        run(rows)
    del held


def measure(run: Callable[[int], None], device: torch.device) -> Cost:
    """What a micro-batch takes of a CUDA device; `run` computes one of so many rows, forward and backward."""
    few, more = _MEASURED_ROWS
    peaks = [measure_peak(run, rows, device) for rows in (few, more)]
    per_row = max(1, (peaks[1] - peaks[0]) // (more - few))
    return Cost(per_row=per_row, besides=max(0, peaks[0] - few * per_row))


def measure_peak(run: Callable[[int], None], rows: int, device: torch.device) -> int:
    """What a micro-batch of so many rows takes of a CUDA device at most."""
    run(rows)  # what is made once is there then
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(rows)
    return torch.cuda.max_memory_allocated(device) - before


def available_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that is free or that PyTorch has cached, within what this process may use, less some to spare."""
    torch.cuda.empty_cache()
    renew_limit(device)
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    in_graphs = sum(  # what CUDA graphs keep for themselves
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0) and segment["device"] == device.index
    )
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    available = min(free + held, allowed - torch.cuda.memory_allocated(device)) - in_graphs
    return max(0, available - int(_SPARE * allowed))
