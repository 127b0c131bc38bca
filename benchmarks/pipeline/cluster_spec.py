"""What a cluster on paper is made of, as numbers: nodes, replicas, network, the conductor's process, training.

Defaults cost nothing, so that each number that is given can be seen in what comes out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vla_train.config import RolloutConfig
from vla_train.types import EpisodeSpec


def paper_lengths(spec: EpisodeSpec) -> int:
    """Decisions of an episode: half succeed after 20 to 50, half reach libero_10's limit of 512 steps."""
    draw = np.random.default_rng([spec.group_id, spec.sample_id])
    return int(draw.integers(20, 51)) if draw.random() < 0.5 else 64


@dataclass(frozen=True, kw_only=True)
class Simulators:
    """Nodes that simulate. A node plays the chunks of its workers one after another, each on all of its cores."""

    nodes: int = 1
    workers_per_node: int = 2
    envs_per_worker: int = 8
    worker_chunk_s: float = 0.0
    """Seconds that a chunk of a worker takes however many slots play."""
    slot_chunk_s: float = 0.0
    """Seconds that come on top for each slot that plays."""
    slot_reset_s: float = 0.0
    """Seconds for each slot that is reset, its picture included."""
    sigma: float = 0.0
    """Spread of the logarithm of a chunk's time, drawn anew for each; its mean stays."""
    node_sigma: float = 0.0
    """Spread of the logarithm of a node's speed, drawn once."""
    length: Callable[[EpisodeSpec], int] = paper_lengths
    """Decisions of an episode."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Copies of the policy: each call's rows are divided among them, and the call ends with the last."""

    count: int = 1
    call_s: float = 0.0
    row_s: float = 0.0
    max_rows: int = 64
    """Most rows of one call for each replica (`rollout.max_policy_batch` / replicas)."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Between the conductor's machine and all others."""

    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    """Of the conductor's machine, in each direction."""
    observation_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The process of conductor and caller: seconds of what is not run here. All but copies hold the GIL, so they add up."""

    python: float = 0.0
    """Time of the conductor's code, as a multiple of what it takes here."""
    send_s: float = 0.0
    """A command to a worker."""
    receive_s: float = 0.0
    """A worker's result."""
    number_s: float = 0.0
    """A row's sampling numbers."""
    call_s: float = 0.0
    """A call of one replica and its answer."""
    gather_s: float = 0.0
    """Copying a row's observation for the policy, and again for the replica's call; no other thread waits for it."""
    record_s: float = 0.0
    """Copying a row's observation into its trajectory."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What lies between rollouts."""

    row_s: float = 0.0
    """Seconds of an update for each decision trained on, by all GPUs that train together."""
    push_s: float = 0.0
    """Seconds that no replica decides while it takes new weights."""
    signal: float = 1.0
    """Share of groups with a learning signal; the others are played and replaced."""


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """All that one conductor drives."""

    rollout: RolloutConfig
    """Its `max_policy_batch` does not count: that of the replicas does."""
    simulators: Simulators = field(default_factory=Simulators)
    replicas: Replicas = field(default_factory=Replicas)
    network: Network = field(default_factory=Network)
    driver: Driver = field(default_factory=Driver)
    training: Training = field(default_factory=Training)
    seed: int = 0
