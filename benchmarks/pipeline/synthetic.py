"""Envs and a policy whose cost is known, and the loops that the pipelined rollout is compared with.

Costs are sleeps: they stand for native work that holds neither the GIL nor a core, so that a schedule is measured and not
this machine. N slots, K actions, S decisions of an episode.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from vla_train.config import EnvConfig
from vla_train.pipeline.env_group import EnvGroup, make_env_group
from vla_train.types import EpisodeSpec, Observation, PolicyOutput

CHUNK_SIZE, ACTION_DIM = 8, 7


class SleepingEnv(VectorEnv):
    """Plays chunks by sleeping; an episode's length is drawn from its initial state's id.

    Args:
        num_envs: N.
        chunk_size: K.
        step_s: Mean seconds of one chunk of the whole group, however many slots are playing.
        sigma: Spread of the logarithm of that time (0: always the same).
        shortest: Decisions of the shortest episode.
        longest: Decisions of the longest.
        image_size: Side of the square image in pixels.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        *,
        chunk_size: int,
        step_s: float = 0.0,
        sigma: float = 0.0,
        shortest: int = 10,
        longest: int = 10,
        image_size: int = 16,
    ) -> None:
        self.num_envs = num_envs
        self.task_ids, self.num_init_states, self.instructions = (0,), {0: 1 << 30}, {0: "wait"}
        self.max_episode_steps = longest * chunk_size
        self.longest = longest
        self._step_s, self._sigma, self._shortest = step_s, sigma, shortest
        self._random: np.random.Generator | None = None
        image = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        text = gym.spaces.Text(8)
        self.single_observation_space = gym.spaces.Dict({"image": image, "instruction": text})
        self.single_action_space = gym.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (num_envs, chunk_size, ACTION_DIM), np.float32)
        self._images = np.zeros((num_envs, image_size, image_size, 3), np.uint8)
        self._left = np.zeros(num_envs, np.int64)
        self._chunk_size = chunk_size

    def _observe(self) -> dict[str, Any]:
        return {"image": self._images, "instruction": ("wait",) * self.num_envs}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        assert options is not None
        if self._random is None:  # every group draws its own times: by the first episode it is given
            self._random = np.random.default_rng(int(options["init_state_id"][0]))
        for slot in np.flatnonzero(options["reset_mask"]):
            draw = np.random.default_rng(int(options["init_state_id"][slot]))
            self._left[slot] = draw.integers(self._shortest, self.longest + 1)
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._step_s:
            assert self._random is not None
            # mean 1 whatever the spread
            factor = self._random.lognormal(-0.5 * self._sigma**2, self._sigma) if self._sigma else 1.0
            time.sleep(self._step_s * factor)
        playing = self._left > 0
        self._left -= playing
        ended = playing & (self._left == 0)
        steps = np.where(playing, self._chunk_size, 0)
        return self._observe(), ended.astype(np.float64), ended, np.zeros_like(ended), {"num_steps": steps}


gym.register("Sleeping-v0", vector_entry_point=SleepingEnv)


class SleepingPolicy:
    """Decides by sleeping, in proportion to the rows."""

    chunk_size, action_dim, version = CHUNK_SIZE, ACTION_DIM, 0

    def __init__(self, *, row_s: float) -> None:
        self._row_s = row_s

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        rows = len(observation)
        if self._row_s:
            time.sleep(self._row_s * rows)
        return PolicyOutput(
            actions=np.zeros((rows, CHUNK_SIZE, ACTION_DIM), np.float32),
            token_ids=np.zeros((rows, CHUNK_SIZE * ACTION_DIM), np.int32),
            logprobs=np.zeros((rows, CHUNK_SIZE * ACTION_DIM), np.float32),
            policy_version=0,
        )


def sleeping_config(*, num_groups: int, envs_per_group: int, worker: Any = "thread", **kwargs: float) -> EnvConfig:
    return EnvConfig(
        id="synthetic:Sleeping-v0",
        kwargs={name: str(value) for name, value in kwargs.items()},
        num_groups=num_groups,
        envs_per_group=envs_per_group,
        worker=worker,
    )


def make_spec(index: int, *, group_id: int = 0) -> EpisodeSpec:
    return EpisodeSpec(group_id=group_id, sample_id=index, task_id=0, init_state_id=index, seed=index)


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a loop achieved."""

    decisions: int
    """Chunks that belong to an episode."""
    seconds: float
    efficiency: float = 0.0
    """Overlap efficiency, where it was measured."""

    @property
    def decisions_per_s(self) -> float:
        return self.decisions / self.seconds


def _decide(policy: Any, group: EnvGroup, images: np.ndarray, slots: np.ndarray) -> np.ndarray:
    actions = np.zeros((group.description.num_slots, policy.chunk_size, policy.action_dim), np.float32)
    observation = Observation(images=images[slots], instructions=("wait",) * len(slots))
    actions[slots] = policy.act(observation, uniforms=None, temperature=1.0).actions
    return actions


def play_serially(config: EnvConfig, policy: Any, *, episodes: int) -> Played:
    """The same components without any overlap: each group in turn decides and steps; finished slots are refilled."""
    groups = [make_env_group(config, chunk_size=policy.chunk_size, seed=index) for index in range(config.num_groups)]
    slots = range(config.envs_per_group)
    playing = [np.zeros(config.envs_per_group, bool) for _ in groups]
    images: list[np.ndarray] = [np.empty(0)] * len(groups)
    given, decisions = 0, 0
    start = time.perf_counter()
    while given < episodes or any(mask.any() for mask in playing):
        for index, group in enumerate(groups):
            free = [slot for slot in slots if not playing[index][slot]][: episodes - given]
            if free:
                images[index] = group.reset(free, [make_spec(given + offset) for offset in range(len(free))]).images
                playing[index][free] = True
                given += len(free)
            if playing[index].any():
                active = playing[index].copy()
                result = group.step(_decide(policy, group, images[index], np.flatnonzero(active)), active)
                images[index] = result.images
                decisions += int(active.sum())
                playing[index] &= ~(result.terminated | result.truncated)
    seconds = time.perf_counter() - start
    for group in groups:
        group.close()
    return Played(decisions=decisions, seconds=seconds)


def play_in_lockstep(config: EnvConfig, policy: Any, *, rounds: int, longest: int) -> Played:
    """Stages in a fixed order, as RLinf's pipelined rollout: serve stage 0, 1, ..., wait for each one's envs in turn, and run
    every slot to the time limit; new episodes begin when all stages are through. Env steps do overlap with the policy."""
    groups = [make_env_group(config, chunk_size=policy.chunk_size, seed=index) for index in range(config.num_groups)]
    episodes = 0
    decisions = 0
    start = time.perf_counter()
    for _ in range(rounds):
        stages = [_Stage(group, first=episodes + index * config.envs_per_group) for index, group in enumerate(groups)]
        episodes += len(groups) * config.envs_per_group
        for _ in range(longest):
            for stage in stages:
                stage.wait()
                stage.step(_decide(policy, stage.group, stage.images, np.arange(config.envs_per_group)))
        for stage in stages:
            stage.wait()
            decisions += stage.decisions
    seconds = time.perf_counter() - start
    for group in groups:
        group.close()
    return Played(decisions=decisions, seconds=seconds)


class _Stage:
    """One env group stepping in the background, its slots playing one episode each."""

    def __init__(self, group: EnvGroup, *, first: int) -> None:
        self.group = group
        slots: Sequence[int] = range(group.description.num_slots)
        self.images = group.reset(slots, [make_spec(first + slot) for slot in slots]).images
        self.decisions = 0
        self._playing = np.ones(len(slots), bool)
        self._thread: threading.Thread | None = None

    def step(self, actions: np.ndarray) -> None:
        self._thread = threading.Thread(target=self._step, args=(actions,))
        self._thread.start()

    def _step(self, actions: np.ndarray) -> None:
        result = self.group.step(actions, self._playing)
        self.images = result.images
        self.decisions += int(self._playing.sum())
        self._playing = self._playing & ~(result.terminated | result.truncated)

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
