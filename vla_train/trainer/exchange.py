"""Equal shares of a mini-batch for all ranks, whoever played its episodes.

Ranks that hold many long episodes would keep the others waiting; so before an update, rows travel to where they are needed.
Every rank knows who holds which row (from the summaries), so nothing but the rows themselves is sent.
"""

import numpy as np
import torch
import torch.distributed as dist

from vla_train.trainer.parallel import Ranks
from vla_train.types import Arrays, TrainBatch


def share_rows(own: TrainBatch, *, owners: np.ndarray, instructions: list[str], ranks: Ranks) -> TrainBatch:
    """This rank's share of a mini-batch of R rows: ceil(R / W) of them, the last repeated with weight 0 to make it even.

    Args:
        own: The rows that this rank holds, in the mini-batch's order (possibly none).
        owners: (R,) which rank holds each row of the mini-batch.
        instructions: R texts.
        ranks: W of them; all must call this.
    """
    share = -(-len(owners) // ranks.size)
    place_in_owner = np.empty(len(owners), np.int64)
    for rank in range(ranks.size):
        held = np.flatnonzero(owners == rank)
        place_in_owner[held] = np.arange(len(held))

    def wanted_by(rank: int) -> np.ndarray:
        return np.minimum(np.arange(rank * share, (rank + 1) * share), len(owners) - 1)

    sent = [place_in_owner[rows[owners[rows] == ranks.rank]] for rows in map(wanted_by, range(ranks.size))]
    wanted = wanted_by(ranks.rank)
    received = [np.flatnonzero(owners[wanted] == rank) for rank in range(ranks.size)]
    order = np.concatenate(received).argsort()
    outgoing = own.select(np.concatenate(sent))

    def exchange(array: np.ndarray) -> np.ndarray:
        source = torch.from_numpy(np.ascontiguousarray(array))
        target = torch.empty((share, *source.shape[1:]), dtype=source.dtype)
        dist.all_to_all_single(target, source, [len(rows) for rows in received], [len(rows) for rows in sent])
        return target.numpy()[order]

    def exchange_all(arrays: Arrays) -> dict[str, np.ndarray]:
        return {name: exchange(arrays[name]) for name in sorted(arrays)}  # one order for all ranks

    weights = exchange(outgoing.weights)
    weights[np.arange(ranks.rank * share, (ranks.rank + 1) * share) >= len(owners)] = 0
    return TrainBatch(
        observations=exchange_all(outgoing.observations),
        instructions=tuple(instructions[row] for row in wanted),
        decisions=exchange_all(outgoing.decisions),
        advantages=exchange(outgoing.advantages),
        weights=weights,
    )
