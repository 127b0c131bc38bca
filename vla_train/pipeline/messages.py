"""What the caller's thread and the conductor say to each other; see `conductor` for who they are."""

import queue
from dataclasses import dataclass

from vla_train.envs.shard import ShardResult
from vla_train.types import Arrays, EpisodeSpec, PolicyOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRow:
    """One slot that waits for a decision."""

    worker: int
    slot: int
    lease: int
    spec: EpisodeSpec
    decision: int
    """Number of this decision in its episode."""
    instruction: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyBatch:
    """Rows for one policy call; observations stay where they are until the decision is back."""

    rows: tuple[BatchRow, ...]
    keys: tuple[str, ...]
    """Of the observation: what is gathered for the rows."""
    workers: tuple[int, ...]
    results: dict[int, ShardResult]
    """Of each worker in the batch: what its rows observe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """The policy's answer to a batch."""

    batch: PolicyBatch
    observations: Arrays
    """(B, ...) each: what the policy saw, and what is recorded besides; trajectories keep views of it."""
    outputs: tuple[PolicyOutput, ...]
    """Of the calls that it took (more than one for more rows than a call may have), B rows together."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Asks the conductor to end where it stands."""

    outbox: "Outbox | None" = None
    """Of the run that is meant; None means whichever is under way."""


class Complete:
    """Tells the caller that the objective is reached."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Tells the caller that the rollout cannot go on."""

    error: BaseException


FromConductor = PolicyBatch | Complete | Failed
Outbox = queue.SimpleQueue[FromConductor]
