"""What travels between the stages of training.

Shape letters: N slots of a worker, B rows of one policy batch, S decisions of a trajectory, K actions in a chunk, A action
dimensions, R rows (decisions) of a training batch, H x W image.

Invariant: identity (`group_id`, `sample_id`, `task_id`, `init_state_id`) and `policy_version` travel inside the data; no
stage infers them from a position. What a policy reads and what it decides are mappings of arrays: only the policy and the
loss know what is in them. All arrays are NumPy on the host; images are stored once, as uint8.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""Arrays by name, with the same first dimension."""

IMAGE = "image"
"""Key of the main image: the one that `env.image_key` names, and that videos show."""
INSTRUCTION = "instruction"
"""Stands for the text among the keys that a policy reads."""


def on_host(array: Any) -> np.ndarray:
    """As a NumPy array: what an env observes may be a PyTorch tensor on a GPU."""
    return np.asarray(array.cpu() if getattr(array, "is_cuda", False) else array)


def select(arrays: Arrays, rows: np.ndarray | slice) -> dict[str, np.ndarray]:
    """Some rows of every array."""
    return {name: array[rows] for name, array in arrays.items()}


def select_one(arrays: Arrays, row: int) -> dict[str, np.ndarray]:
    """One row of every array, as views."""
    return {name: array[row] for name, array in arrays.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeSpec:
    """One episode to play: which start, and which of the group's samples it is."""

    group_id: int
    """Counts prompts over the whole run (evaluations have ids of their own); the samples of one group share task, initial
    state and seed."""
    sample_id: int
    """0 .. group_size - 1."""
    task_id: int
    """Task of the env's benchmark; 0 for an env that has one task."""
    init_state_id: int
    """Stored initial state of the benchmark; -1 for an env that draws its own from `seed`."""
    seed: int
    """Seed of the env's reset. The policy's samples are drawn from (seed of the run, group_id, sample_id, step) instead,
    so that the samples of one group differ and no episode depends on which others shared its batch."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and type of one slot's part of an observation."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of it."""

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvDescription:
    """What the rollout and the policy need to know of an env."""

    observations: Mapping[str, ArraySpec]
    """Arrays that the env observes, by key; those of a nested dict are named "outer/inner"."""
    action_low: np.ndarray
    """(A,) float32."""
    action_high: np.ndarray
    """(A,) float32."""
    num_slots: int = 1
    """N: envs side by side in one worker."""
    mirrored_images: bool = False
    """Images are mirrored left to right (an env says so by an attribute of this name): videos for people undo it."""
    task_ids: tuple[int, ...] = (0,)
    """Tasks this env can play; (0,) for an env that has one."""
    num_init_states: Mapping[int, int] = field(default_factory=dict)
    """Stored initial states of each task; empty if the env draws its own from a seed."""
    has_instruction: bool = True
    """Whether episodes say what to do: the env in its observation, or `env.instruction` for all."""
    suite: str | None = None
    """Name of the benchmark suite, where there is one."""
    max_episode_steps: int | None = None
    """Time limit in env steps; None if it differs from task to task."""
    robot_type: str | None = None
    """Name of the robot, as datasets give it; None where the env does not say."""
    actions_per_s: float | None = None
    """Actions that the robot takes in a second of its time; None where the env does not say."""
    simulation: Mapping[str, Any] = field(default_factory=dict)
    """What simulates and draws, and how (an env says so in an attribute of this name), for the record."""
    whole_resets: bool = False
    """Slots can only be reset all at once (an env without `reset_mask`): less dense, equally correct."""

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)

    def same_env(self, other: "EnvDescription") -> bool:
        """Whether episodes of one may be played on the other."""
        return (
            self.observations == other.observations
            and self.task_ids == other.task_ids
            and self.num_init_states == other.num_init_states
            and np.array_equal(self.action_low, other.action_low)
            and np.array_equal(self.action_high, other.action_high)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a row is played, for a policy that keeps something between the decisions of an episode."""

    worker: int = 0
    slot: int
    episode: int
    """Rises from episode to episode of a slot; one that is played from its start again has another number."""
    decision: int
    """Number of this decision in its episode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What the policy sees of B slots: the keys that it reads, and no others."""

    arrays: Arrays
    """(B, ...) each, as the env gives them; images (B, H, W, 3) uint8. For a policy that `takes_tensors`, some may be PyTorch
    tensors on a GPU."""
    instructions: tuple[str, ...]
    """B texts; empty where the env gives none."""
    places: tuple[Place, ...] = ()
    """B places; none where rows are not being played, as in updates."""

    def __len__(self) -> int:
        return len(self.instructions)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def select(self, rows: np.ndarray | slice) -> Self:
        """Some rows, in the order given."""
        numbers = np.arange(len(self))[rows]
        return type(self)(
            arrays=select(self.arrays, rows),
            instructions=tuple(self.instructions[row] for row in numbers),
            places=tuple(self.places[row] for row in numbers) if self.places else (),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyOutput:
    """One decision for each of B rows."""

    actions: np.ndarray
    """(B, K, A) float32, in the env's own units."""
    decision: Arrays
    """(B, ...) each: whatever the policy and the loss need to know of the decision later (token ids, log-probs, ...)."""
    policy_version: int
    """Of the weights that decided: how many updates had changed them."""


RETURN_ROUNDING = 1e-6
"""Returns are equal up to this part of them: envs and chunks add up rewards in float32, in another order each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One finished episode: S decisions in the order they were played."""

    spec: EpisodeSpec
    instruction: str
    observations: Arrays
    """(S, ...) each: what the policy read before each decision."""
    decisions: Arrays
    """(S, ...) each: `PolicyOutput.decision`, kept from sampling."""
    num_steps: np.ndarray
    """(S,) int32: how many of the chunk's K actions were played; the rest came after the episode's end."""
    rewards: np.ndarray
    """(S,) float32: reward summed over the actions played."""
    policy_versions: np.ndarray
    """(S,) int32."""
    success: bool
    """See `EnvConfig.success`."""
    truncated: bool
    """Ended by the time limit or by a fault of the simulator, not by the task."""
    film: np.ndarray | None = None
    """(T, H, W, 3) uint8: the main image from the episode's start to its very end, at even intervals; None: not asked for."""

    def __len__(self) -> int:
        return len(self.num_steps)

    @property
    def episode_return(self) -> float:
        """Sum of the rewards; good to `RETURN_ROUNDING`."""
        return float(self.rewards.sum(dtype=np.float64))

    @property
    def length(self) -> int:
        """Env steps played."""
        return int(self.num_steps.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The G finished samples of one prompt, ordered by sample_id."""

    group_id: int
    trajectories: tuple[Trajectory, ...]

    @property
    def success_rate(self) -> float:
        return float(np.mean([trajectory.success for trajectory in self.trajectories]))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBatch:
    """Decisions of many trajectories, ready for the loss; rows of one trajectory need not be adjacent.

    All normalisation of the loss sits in `weights`, so that no cut into micro-batches and no order of rows changes the result.
    """

    observations: Arrays
    """(R, ...) each."""
    instructions: tuple[str, ...]
    """R texts."""
    decisions: Arrays
    """(R, ...) each, from sampling."""
    advantages: np.ndarray
    """(R,) float32."""
    weights: np.ndarray
    """(R, K) float32, of each action: 0 where it was not played; those of a mini-batch sum to 1 (or are all 0)."""

    def __len__(self) -> int:
        return len(self.instructions)

    def select(self, rows: np.ndarray | slice) -> Self:
        """Some rows, in the order given."""
        return type(self)(
            observations=select(self.observations, rows),
            instructions=tuple(self.instructions[row] for row in np.arange(len(self))[rows]),
            decisions=select(self.decisions, rows),
            advantages=self.advantages[rows],
            weights=self.weights[rows],
        )
