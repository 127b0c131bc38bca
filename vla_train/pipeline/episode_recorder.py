"""Collects the decisions of one episode while it is played."""

from dataclasses import dataclass, field

import numpy as np

from vla_train.config import EnvConfig
from vla_train.types import EpisodeSpec, Trajectory


@dataclass(slots=True)
class EpisodeRecorder:
    """One episode under way: `decide`, `play`, `decide`, `play`, ... and at the end `finish`."""

    spec: EpisodeSpec
    instruction: str
    _images: list[np.ndarray] = field(default_factory=list)
    _token_ids: list[np.ndarray] = field(default_factory=list)
    _logprobs: list[np.ndarray] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)
    _num_steps: list[int] = field(default_factory=list)
    _rewards: list[float] = field(default_factory=list)

    @property
    def decisions(self) -> int:
        """Decisions taken so far: the number of the next one."""
        return len(self._token_ids)

    def decide(self, image: np.ndarray, token_ids: np.ndarray, logprobs: np.ndarray, version: int) -> None:
        """The policy saw `image` (H, W, 3) and chose; the arrays are kept, not copied."""
        assert len(self._num_steps) == len(self._token_ids), "the last decision has not been played"
        self._images.append(image)
        self._token_ids.append(token_ids)
        self._logprobs.append(logprobs)
        self._versions.append(version)

    def play(self, num_steps: int, reward: float) -> None:
        """The env played `num_steps` of the chunk's actions."""
        assert len(self._num_steps) == len(self._token_ids) - 1, "nothing was decided"
        self._num_steps.append(num_steps)
        self._rewards.append(reward)

    def finish(self, *, terminated: bool, truncated: bool, final_reward: float, config: EnvConfig) -> Trajectory:
        """The episode has ended; whether it succeeded is `config.success`'s to say."""
        rewards = np.asarray(self._rewards, np.float32)
        if config.success == "return":
            success = float(rewards.sum()) >= config.success_return
        else:
            success = terminated and final_reward > 0
        return Trajectory(
            spec=self.spec,
            instruction=self.instruction,
            images=np.stack(self._images),
            token_ids=np.stack(self._token_ids),
            logprobs=np.stack(self._logprobs),
            num_steps=np.asarray(self._num_steps, np.int32),
            rewards=rewards,
            policy_versions=np.asarray(self._versions, np.int32),
            success=success,
            truncated=truncated and not terminated,
        )
