"""What is measured with: what the envs show at the start of episodes, and episodes made of it.

N slots of all workers, S decisions of an episode.
"""

import queue
from collections.abc import Iterator, Sequence

import numpy as np

from vla_train.envs.shard import ShardResult
from vla_train.envs.worker import EnvWorker, Event, Reset, WorkerError, WorkerFault
from vla_train.types import (
    INSTRUCTION,
    Arrays,
    EpisodeSpec,
    Group,
    Observation,
    Trajectory,
    on_host,
)


def first_observations(workers: Sequence[EnvWorker], specs: Iterator[EpisodeSpec], keys: Sequence[str]) -> Observation:
    """Reset all slots of idle workers, and return what they observe: N rows on the host.

    Args:
        workers: Whoever uses them next must `connect` them to itself.
        specs: Episodes to start; one is taken for each slot.
        keys: What the policy reads.

    Raises:
        WorkerError: A worker failed, or gives no answer.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    keys = tuple(key for key in keys if key != INSTRUCTION)
    for worker in workers:
        worker.connect(events.put)
        slots = tuple(range(worker.description.num_slots))
        worker.send(Reset(slots=slots, specs=tuple(next(specs) for _ in slots), keys=keys))
    results: dict[int, ShardResult] = {}
    timeout_s = workers[0].config.step_timeout_s
    for _ in workers:
        try:
            event = events.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerError(f"{workers[0].config.id}: a worker gave no answer for {timeout_s:g} s") from None
        if isinstance(event.content, WorkerFault):
            error = event.content.error
            raise WorkerError(f"worker {event.worker} failed: {type(error).__name__}: {error}") from error
        assert isinstance(event.content, ShardResult)
        results[event.worker] = event.content
    ordered = [results[worker.index] for worker in workers]
    return Observation(
        arrays={key: np.concatenate([on_host(result.observations[key]) for result in ordered]) for key in keys},
        instructions=tuple(text for result in ordered for text in result.instructions),
    )


def repeated(observation: Observation, rows: int) -> Observation:
    """So many rows, beginning anew where there are no more."""
    places = np.arange(rows) % len(observation)
    return Observation(
        arrays={key: array[places] for key, array in observation.arrays.items()},
        instructions=tuple(observation.instructions[place] for place in places),
    )


def make_groups(
    observation: Observation, decision: Arrays, *, rows: int, group_size: int, episode_decisions: int, chunk_size: int
) -> list[Group]:
    """Groups of episodes, about as many rows as asked for: in each, every second episode succeeds.

    Args:
        observation: What the rows observe; each episode repeats one of them.
        decision: What the policy decided for them (`PolicyOutput.decision`).
        rows: Decisions in all; at least one group is made, of shorter episodes where they would be more.
        group_size: Episodes per group.
        episode_decisions: S.
        chunk_size: K.
    """
    length = max(1, min(episode_decisions, rows // group_size))

    def episode(group_id: int, sample_id: int) -> Trajectory:
        row = (group_id * group_size + sample_id) % len(observation)
        places = np.full(length, row)
        success = (group_id + sample_id) % 2 == 0
        rewards = np.zeros(length, np.float32)
        rewards[-1] = success
        return Trajectory(
            spec=EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=0, init_state_id=-1, seed=0),
            instruction=observation.instructions[row],
            observations={key: array[places] for key, array in observation.arrays.items()},
            decisions={key: array[places] for key, array in decision.items()},
            num_steps=np.full(length, chunk_size, np.int32),
            rewards=rewards,
            policy_versions=np.zeros(length, np.int32),
            success=success,
            truncated=not success,
        )

    return [
        Group(group_id=group_id, trajectories=tuple(episode(group_id, sample_id) for sample_id in range(group_size)))
        for group_id in range(max(1, rows // (group_size * length)))
    ]
