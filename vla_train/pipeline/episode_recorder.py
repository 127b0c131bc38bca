"""Collects the decisions of one episode while it is played."""

from dataclasses import dataclass, field

import numpy as np

from vla_train.config import EnvConfig
from vla_train.types import IMAGE, RETURN_ROUNDING, Arrays, EpisodeSpec, Trajectory


@dataclass(slots=True)
class EpisodeRecorder:
    """One episode under way: `decide`, `play`, `decide`, `play`, ... and at the end `finish`."""

    spec: EpisodeSpec
    instruction: str
    filmed: bool | None = None
    """Whether `play` is given the frames of all actions; False: only the last of the episode, None: none."""
    _observations: list[Arrays] = field(default_factory=list)
    _decisions: list[Arrays] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)
    _num_steps: list[int] = field(default_factory=list)
    _rewards: list[float] = field(default_factory=list)
    _frames: list[np.ndarray] = field(default_factory=list)
    _succeeded: bool = False

    @property
    def decisions(self) -> int:
        """Decisions taken so far: the number of the next one."""
        return len(self._decisions)

    def decide(self, observation: Arrays, decision: Arrays, version: int) -> None:
        """The policy saw `observation` and chose; the arrays are kept, not copied."""
        assert len(self._num_steps) == len(self._decisions), "the last decision has not been played"
        self._observations.append(observation)
        self._decisions.append(decision)
        self._versions.append(version)

    def play(self, num_steps: int, reward: float, *, succeeded: bool, frames: np.ndarray | None = None) -> None:
        """The env played `num_steps` of the chunk's actions, and said whether one of them made the episode a success."""
        assert len(self._num_steps) == len(self._decisions) - 1, "nothing was decided"
        self._num_steps.append(num_steps)
        self._rewards.append(reward)
        self._succeeded |= succeeded
        if frames is not None:
            self._frames.append(frames)

    def finish(self, *, terminated: bool, truncated: bool, config: EnvConfig) -> Trajectory:
        """The episode has ended."""
        rewards = np.asarray(self._rewards, np.float32)
        enough = config.success_return - RETURN_ROUNDING * max(1.0, abs(config.success_return))
        reached = config.success == "return" and bool(rewards.sum(dtype=np.float64) >= enough)
        return Trajectory(
            spec=self.spec,
            instruction=self.instruction,
            observations=_stack(self._observations),
            decisions=_stack(self._decisions),
            num_steps=np.asarray(self._num_steps, np.int32),
            rewards=rewards,
            policy_versions=np.asarray(self._versions, np.int32),
            success=self._succeeded or reached,
            truncated=truncated and not terminated,
            film=self._film(),
        )

    def _film(self) -> np.ndarray | None:
        """What was seen from the start to the end; without all frames, what was seen at each decision and at the end."""
        if self.filmed is None or IMAGE not in self._observations[0]:
            return None
        seen = self._observations[:1] if self.filmed else self._observations
        return np.concatenate([*(observation[IMAGE][None] for observation in seen), *self._frames])


def _stack(steps: list[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}
