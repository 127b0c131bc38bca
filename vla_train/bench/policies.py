"""Policies for measuring a rollout: one that costs nothing, and one that counts decisions and says when it is enough."""

import time

import numpy as np

from vla_train.policy.base import Policy
from vla_train.types import EnvDescription, Observation, PolicyOutput


class TimeUp(Exception):  # noqa: N818
    """The measurement is over: not an error."""


class RandomPolicy:
    """Uniform actions within the env's bounds, at no cost."""

    version = 0
    observation_keys: tuple[str, ...] = ()

    def __init__(self, env: EnvDescription, *, chunk_size: int) -> None:
        self.chunk_size, self.action_dim = chunk_size, env.action_dim
        self.num_uniforms = chunk_size * env.action_dim
        self._low, self._span = env.action_low, env.action_high - env.action_low

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        assert uniforms is not None
        numbers = uniforms[:, : self.num_uniforms].reshape(len(observation), self.chunk_size, self.action_dim)
        return PolicyOutput(actions=self._low + self._span * numbers, decision={}, policy_version=0)


class MeteredPolicy:
    """Lets another policy decide, and raises `TimeUp` when enough was measured. It reads and takes what `played` does.

    Args:
        played: The policy of the run, which random actions stand in for at the same costs of the envs.
    """

    version = 0

    def __init__(self, played: Policy) -> None:
        self.takes_tensors = getattr(played, "takes_tensors", False)
        self.chunk_size, self.action_dim = played.chunk_size, played.action_dim
        self.observation_keys = played.observation_keys
        self.num_uniforms = max(played.num_uniforms, played.chunk_size * played.action_dim)
        self._played_uniforms = played.num_uniforms
        self.begin(played, warm_up_rows=0, least_rows=0, seconds=0.0)

    def begin(self, policy: Policy, *, warm_up_rows: int, least_rows: int, seconds: float) -> None:
        """Measure `policy` from now on, after its first rows, for some seconds and rows."""
        self._policy, self._is_random = policy, isinstance(policy, RandomPolicy)
        self._warm_up_rows, self._least_rows, self._seconds = warm_up_rows, least_rows, seconds
        self._rows = 0
        self.began: float | None = None
        """When the warm-up was over: a `time.perf_counter()` reading."""
        self.ended = 0.0

    @property
    def chunks_per_s(self) -> float:
        """Decisions per second, of what was measured last."""
        assert self.began is not None
        return self._rows / (self.ended - self.began)

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        now = time.perf_counter()
        if self.began is None:
            if self._rows >= self._warm_up_rows:
                self.began, self._rows = now, 0
        elif self._rows >= self._least_rows and now - self.began >= self._seconds:
            self.ended = now
            raise TimeUp
        self._rows += len(observation)
        if uniforms is not None and not self._is_random:
            uniforms = uniforms[:, : self._played_uniforms]
        return self._policy.act(observation, uniforms=uniforms, temperature=temperature)
