"""Which episodes are played: the split of initial states, the endless stream of training prompts, the evaluation set.

Invariant: a prompt is a pure function of (seed, group_id), so a stream resumes from its counter alone; and with
`train_fraction` below 1 no initial state is both trained on and held out.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vla_train.config import EvalConfig
from vla_train.types import EnvDescription, EpisodeSpec

_EVALUATION_SEEDS = 1 << 30
"""Seeds of envs without stored initial states: training draws below this, evaluation counts up from here."""
_EVALUATION_GROUPS = 1 << 40
"""Group ids of evaluations start here, those of training at 0: what they draw is independent."""
_STARTS_PER_TASK = 1 << 20
"""More than a task has."""


def split_initial_states(
    task_id: int, num_states: int, *, train_fraction: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the initial states of one task for training and for evaluation: disjoint, sorted, the same for the same seed.

    Each side keeps at least one state where there are two or more and the fraction asks for both.
    """
    order = np.random.default_rng([split_seed, task_id]).permutation(num_states)
    cut = round(num_states * train_fraction)
    if 0 < train_fraction < 1 and num_states >= 2:
        cut = min(max(cut, 1), num_states - 1)
    return np.sort(order[:cut]), np.sort(order[cut:])


class PromptStream(Iterator[tuple[EpisodeSpec, ...]]):
    """Endless training prompts, each as the G episodes of its group.

    Every (task, initial state) pair of the training split comes once per pass, in a fresh order each pass. An env that
    stores no initial states (`num_init_states` empty) gets a fresh reset seed per prompt instead.

    Args:
        task_ids: Tasks to train on.
        num_init_states: Stored initial states per task.
        group_size: G.
        train_fraction: Share of each task's initial states that belongs to training.
        split_seed: Of the split; a run and the demonstrations that it starts from have the same.
        seed: Of the order.
        next_group_id: Where to start; the only state there is.
    """

    def __init__(
        self,
        task_ids: Sequence[int],
        num_init_states: Mapping[int, int],
        *,
        group_size: int,
        train_fraction: float,
        split_seed: int,
        seed: int,
        next_group_id: int = 0,
    ) -> None:
        self.next_group_id = next_group_id
        self._group_size = group_size
        self._seed = seed
        self._pairs: list[tuple[int, int]] = []
        for task_id in task_ids:
            if task_id in num_init_states:
                states = num_init_states[task_id]
                train, _ = split_initial_states(task_id, states, train_fraction=train_fraction, split_seed=split_seed)
                self._pairs += [(task_id, int(state)) for state in train]
            else:
                self._pairs.append((task_id, -1))
        if not self._pairs:
            raise ValueError("no initial state is left to train on: raise train_fraction, or choose more tasks")

    def __next__(self) -> tuple[EpisodeSpec, ...]:
        group_id = self.next_group_id
        self.next_group_id += 1
        passed, index = divmod(group_id, len(self._pairs))
        order = np.random.default_rng([self._seed, 1, passed]).permutation(len(self._pairs))
        task_id, init_state_id = self._pairs[order[index]]
        reset_seed = int(np.random.default_rng([self._seed, 2, group_id]).integers(_EVALUATION_SEEDS))
        return tuple(
            EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=task_id, init_state_id=init_state_id, seed=reset_seed)
            for sample_id in range(self._group_size)
        )


def evaluation_plan(
    env: EnvDescription, config: EvalConfig, *, train_fraction: float, split_seed: int
) -> dict[float, list[EpisodeSpec]]:
    """The episodes of one evaluation, by temperature; see `evaluation_episodes`."""
    return {
        temperature: evaluation_episodes(
            env.task_ids,
            env.num_init_states,
            config,
            temperature=temperature,
            train_fraction=train_fraction,
            split_seed=split_seed,
        )
        for temperature in config.temperatures
    }


def evaluation_episodes(
    task_ids: Sequence[int],
    num_init_states: Mapping[int, int],
    config: EvalConfig,
    *,
    temperature: float,
    train_fraction: float,
    split_seed: int,
) -> list[EpisodeSpec]:
    """`config.episodes_per_task` episodes of each task, tasks interleaved.

    Each starts from another initial state, or reset seed where the env stores none. Where more episodes are asked for than a
    task has states, sampled ones (temperature above 0) begin again with the first state and the next `sample_id`; greedy ones
    do not. The ids of an episode, and so what it draws, depend on its start alone, not on which others are played.

    Raises:
        ValueError: `episodes_per_task` is 0 for an env that stores no initial states, or the split leaves none.
    """
    per_task: list[list[EpisodeSpec]] = []
    for task_id in task_ids:
        if task_id in num_init_states:
            num_states = num_init_states[task_id]
            train, held_out = split_initial_states(task_id, num_states, train_fraction=train_fraction, split_seed=split_seed)
            chosen = {"held-out": held_out, "train": train, "all": np.arange(num_states)}[config.initial_states]
            starts = [(int(state), _EVALUATION_SEEDS + int(state)) for state in chosen]
        else:
            if config.episodes_per_task == 0:
                raise ValueError(
                    "eval.episodes_per_task 0 plays all stored initial states, and this env has none: give a number"
                )
            starts = [(-1, _EVALUATION_SEEDS + index) for index in range(config.episodes_per_task)]
        if not starts:
            raise ValueError(f"no {config.initial_states} initial state is left for task {task_id}: change train_fraction")
        asked = config.episodes_per_task or len(starts)
        per_task.append(
            [
                EpisodeSpec(
                    group_id=_EVALUATION_GROUPS + task_id * _STARTS_PER_TASK + reset_seed - _EVALUATION_SEEDS,
                    sample_id=sample_id,
                    task_id=task_id,
                    init_state_id=init_state_id,
                    seed=reset_seed,
                )
                for sample_id in range(-(-asked // len(starts)) if temperature > 0 else 1)
                for init_state_id, reset_seed in starts
            ][:asked]
        )
    longest = max(map(len, per_task), default=0)
    return [episodes[index] for index in range(longest) for episodes in per_task if index < len(episodes)]
