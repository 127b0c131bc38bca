"""What travels between the stages of training.

Shape letters: N slots of an env group, B rows of one policy batch, S decision steps of a trajectory, K actions in a chunk,
A action dimensions, T = K * A action tokens per decision, R rows (decision steps) of a training batch, H x W image.

Invariant: identity (`group_id`, `sample_id`, `task_id`, `init_state_id`) and `policy_version` travel inside the data; no
stage infers them from a position. All arrays are NumPy on the host; images are stored once, as uint8.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeSpec:
    """One episode to play: which start, and which of the group's samples it is."""

    group_id: int
    """Counts prompts over the whole run; the samples of one group share task, initial state and seed."""
    sample_id: int
    """0 .. group_size - 1."""
    task_id: int
    """Task of the env's benchmark; 0 for an env that has one task."""
    init_state_id: int
    """Stored initial state of the benchmark; -1 for an env that draws its own from `seed`."""
    seed: int
    """Seed of the env's reset. The policy's samples are drawn from (seed of the run, group_id, sample_id, step) instead,
    so that the samples of one group differ and no episode depends on which others shared its batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvDescription:
    """What the rollout and the policy need to know of an env group."""

    num_slots: int
    """N."""
    image_shape: tuple[int, int, int]
    """(H, W, 3)."""
    mirrored_images: bool
    """Images are mirrored left to right (an env says so by an attribute of this name): videos for people undo it."""
    action_low: np.ndarray
    """(A,) float32."""
    action_high: np.ndarray
    """(A,) float32."""
    task_ids: tuple[int, ...]
    """Tasks this env can play; (0,) for an env that has one."""
    num_init_states: dict[int, int]
    """Stored initial states of each task; empty if the env draws its own from a seed."""
    instructions: dict[int, str]
    """Instruction of each task, where the env says so before it is reset."""
    suite: str | None
    """Name of the benchmark suite, where there is one."""
    max_episode_steps: int | None
    """Time limit in env steps; None if it differs from task to task."""
    whole_resets: bool
    """Slots can only be reset all at once (an env without `reset_mask`): less dense, equally correct."""

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)

    def same_env(self, other: "EnvDescription") -> bool:
        """Whether episodes of one may be played on the other."""
        return (
            self.image_shape == other.image_shape
            and self.task_ids == other.task_ids
            and self.num_init_states == other.num_init_states
            and np.array_equal(self.action_low, other.action_low)
            and np.array_equal(self.action_high, other.action_high)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What the policy sees of B slots."""

    images: np.ndarray
    """(B, H, W, 3) uint8."""
    instructions: tuple[str, ...]
    """B texts."""

    def __len__(self) -> int:
        return len(self.instructions)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyOutput:
    """One decision for each of B rows."""

    actions: np.ndarray
    """(B, K, A) float32, in the env's own units."""
    token_ids: np.ndarray
    """(B, T) int32: the sampled vocabulary ids."""
    logprobs: np.ndarray
    """(B, T) float32: log-probability of each token at the sampling temperature, over the action bins."""
    policy_version: int
    """Of the weights that sampled: how many updates had changed them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One finished episode: S decisions in the order they were played."""

    spec: EpisodeSpec
    instruction: str
    images: np.ndarray
    """(S, H, W, 3) uint8: what the policy saw before each decision."""
    token_ids: np.ndarray
    """(S, T) int32."""
    logprobs: np.ndarray
    """(S, T) float32, kept from sampling."""
    num_steps: np.ndarray
    """(S,) int32: how many of the chunk's K actions were played; the rest came after the episode's end."""
    rewards: np.ndarray
    """(S,) float32: reward summed over the actions played."""
    policy_versions: np.ndarray
    """(S,) int32."""
    success: bool
    """The env's own verdict (see `EnvConfig.success`)."""
    truncated: bool
    """Ended by the time limit or by a fault of the simulator, not by the task."""

    def __len__(self) -> int:
        return len(self.num_steps)

    @property
    def episode_return(self) -> float:
        return float(self.rewards.sum())

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
    """Decision steps of many trajectories, ready for the loss; rows of one trajectory need not be adjacent.

    The loss is `sum(weights * per_token_loss)`: all normalisation sits in `weights`, so that no cut into micro-batches and
    no order of rows changes the result.
    """

    images: np.ndarray
    """(R, H, W, 3) uint8."""
    instructions: tuple[str, ...]
    """R texts."""
    token_ids: np.ndarray
    """(R, T) int32."""
    old_logprobs: np.ndarray
    """(R, T) float32, from sampling."""
    advantages: np.ndarray
    """(R, T) float32."""
    weights: np.ndarray
    """(R, T) float32: 0 where the action was not played; the weights of a mini-batch sum to 1 (or are all 0)."""
    policy_versions: np.ndarray
    """(R,) int32."""

    def __len__(self) -> int:
        return len(self.instructions)
