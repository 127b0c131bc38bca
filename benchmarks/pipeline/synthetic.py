"""Envs and a policy whose cost is known.

Costs are sleeps: they stand for native work that holds neither the GIL nor a core, so that a schedule is measured and not
this machine. N slots, K actions, S decisions of an episode.
"""

import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from vla_train.config import EnvConfig
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
    observation_keys, num_uniforms = ("image",), CHUNK_SIZE * ACTION_DIM

    def __init__(self, *, row_s: float) -> None:
        self._row_s = row_s

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        rows = len(observation)
        if self._row_s:
            time.sleep(self._row_s * rows)
        return PolicyOutput(
            actions=np.zeros((rows, CHUNK_SIZE, ACTION_DIM), np.float32),
            decision={
                "token_ids": np.zeros((rows, CHUNK_SIZE * ACTION_DIM), np.int32),
                "logprobs": np.zeros((rows, CHUNK_SIZE * ACTION_DIM), np.float32),
            },
            policy_version=0,
        )


class SleepingLearner(SleepingPolicy):
    """The same, and trained by sleeping: of one weight, which makes every number as likely as any other."""

    def __init__(self, *, row_s: float, training_row_s: float) -> None:
        super().__init__(row_s=row_s)
        self._training_row_s = training_row_s
        self._module = torch.nn.Linear(1, 1, bias=False)

    def trainable_module(self) -> torch.nn.Module:
        return self._module

    def evaluate(
        self, observation: Observation, decision: Mapping[str, torch.Tensor], *, temperature: float
    ) -> dict[str, torch.Tensor]:
        time.sleep(self._training_row_s * len(observation))
        return {"logprobs": self._module.weight.sum() * torch.zeros_like(decision["logprobs"])}


def sleeping_config(*, num_workers: int, envs_per_worker: int, worker: Any = "thread", **kwargs: float) -> EnvConfig:
    return EnvConfig(
        success="terminated",
        id="synthetic:Sleeping-v0",
        kwargs={name: str(value) for name, value in kwargs.items()},
        num_workers=num_workers,
        envs_per_worker=envs_per_worker,
        worker=worker,
    )


def make_spec(number: int, group_id: int, sample_id: int) -> EpisodeSpec:
    """Episode `number`, whose length is drawn from that number."""
    return EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=0, init_state_id=number, seed=number)
