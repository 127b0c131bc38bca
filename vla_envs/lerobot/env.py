"""One task in N slots, as LeRobot's evaluation drives an env: rollout after rollout, with whole resets between them.

    step: keep the action until there are K  ->  play them as a chunk, draw once  ->  what the policy looks at next

Invariants: The b-th rollout starts slot i from stored initial state b N + i, and begins again after the last one; which states
these are depends on nothing that happened in an episode. A slot whose episode is over waits for the next reset, and costs
nothing. After `close` it may be used again, and starts from state 0: LeRobot closes an env after each evaluation of its task.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from vla_envs.errors import NotResetError
from vla_envs.lerobot.observations import arrange, arranged_space
from vla_envs.vector.arguments import read_actions
from vla_envs.vector.base import CONTROL_HZ, ChunkedVectorEnv

_MARKS = {"lerobot_new_rollout"}
"""Options of `reset` by which LeRobot tells its own wrapper that this is no automatic reset. Here none is."""


class LeRobotVectorEnv(gym.vector.VectorEnv):
    """N slots of one task, played action by action.

    Args:
        make: Makes the env inside: of one task, with a `chunk_size` (K) and `AutoresetMode.DISABLED`. With K above 1 the
            observation and whether an episode is over are news after every K-th action and after the last one of the time
            limit; in between they are what they were.
        task_name: Of the task, as its benchmark has it; `call("task_description")` is the sentence.
        pictures: Keys of pictures that the env observes -> LeRobot's names of them; the first one is what `render` shows.
        layout: See `observations.py`.
    """

    def __init__(
        self, make: Callable[[], ChunkedVectorEnv], *, task_name: str, pictures: Mapping[str, str], layout: str
    ) -> None:
        self._make = make
        self._task_name = task_name
        self._pictures = dict(pictures)
        self._layout = layout
        self._next_state = 0
        self._observed: dict[str, Any] | None = None
        """As the env inside gave it last; None before the first reset."""
        self._kept: list[np.ndarray] = []
        """Actions that were not played yet, (N, 1, 7) each."""
        self._elapsed = 0
        """Actions taken since the last reset."""
        self._env: ChunkedVectorEnv | None = None
        """None while it is closed, as it is at first: a suite has many tasks."""
        inside = make()  # which refuses what cannot work, and knows the spaces
        assert inside.autoreset_mode == AutoresetMode.DISABLED
        assert inside.chunk_size is not None
        self._chunk_size = inside.chunk_size
        self.num_envs = inside.num_envs
        self.render_mode = "rgb_array"
        self.metadata = {**inside.metadata, "render_fps": CONTROL_HZ}  # LeRobot's encoder of videos takes whole numbers only
        space, actions = inside.single_observation_space, inside.single_action_space
        assert isinstance(space, gym.spaces.Dict)
        assert isinstance(actions, gym.spaces.Box)
        self.single_observation_space = arranged_space(space, self._pictures, layout)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.single_action_space = gym.spaces.Box(actions.low[0], actions.high[0], dtype=np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        inside.close()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # type: ignore[override]
        """Begin an episode in each slot.

        Args:
            seed: Of each slot, or one for all. Stored initial states do not depend on it; drawn ones do.
            options: LeRobot's own mark of a new rollout, or nothing.

        Raises:
            ValueError: Other options.
        """
        unknown = set(options or ()) - _MARKS
        if unknown:
            raise ValueError(
                f"unknown reset option {min(unknown)!r}: stored states are played in their order, all slots together"
            )
        inside = self._opened
        chosen: dict[str, Any] = {}
        if inside.num_init_states:
            ((_, count),) = inside.num_init_states.items()
            chosen["init_state_id"] = (self._next_state + np.arange(self.num_envs)) % count
        self._kept, self._elapsed = [], 0
        self._observed, info = inside.reset(seed=seed, options=chosen)
        self._next_state += self.num_envs
        return self._arranged(), info | {"is_success": np.zeros(self.num_envs, bool)}

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:  # type: ignore[override]
        """Take one action (N, 7) in each slot; those of slots whose episode is over are ignored.

        `info["is_success"]`, (N,) bool, says in which slots the goal was reached; all else is as in `ChunkedVectorEnv.step`.

        Raises:
            NotResetError: There is no episode yet.
            ValueError: Wrong shape, or a number that is not finite; nothing has moved.
        """
        if self._observed is None:
            raise NotResetError("step: there is no episode yet: call reset() first")
        inside = self._opened
        self._kept.append(read_actions(actions, self.action_space.shape, chunk_size=None))  # type: ignore[arg-type]
        self._elapsed += 1
        if len(self._kept) < self._chunk_size and self._elapsed < inside.max_episode_steps:
            nothing = np.zeros(self.num_envs, bool)
            return self._arranged(), np.zeros(self.num_envs), nothing, nothing.copy(), {"is_success": nothing.copy()}
        chunk, self._kept = np.concatenate(self._kept, axis=1), []
        self._observed, reward, terminated, truncated, info = inside.step(chunk)
        return self._arranged(), reward, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...]:  # type: ignore[override]
        """N pictures (H, W, 3) uint8 of the first camera, turned as policies see them; nothing is drawn for it."""
        if self._observed is None:
            raise NotResetError("render: there is no episode yet: call reset() first")
        return tuple(self._observed[next(iter(self._pictures))])

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As Gymnasium's own vector envs: `render`, `task` (its name), and whatever `ChunkedVectorEnv.call` takes."""
        if name == "render":
            return self.render()
        if name == "task":
            return (self._task_name,) * self.num_envs
        return self._opened.call(name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The same as `call` without arguments."""
        return self.call(name)

    def close(self, **kwargs: Any) -> None:
        """Free everything that the task needs; arguments are not needed. The next call opens it again."""
        if self._env is not None:
            self._env.close()
        self._env, self._observed, self._next_state = None, None, 0

    def __del__(self) -> None:
        """The env inside knows how to be collected."""

    @property
    def _opened(self) -> ChunkedVectorEnv:
        if self._env is None:
            self._env = self._make()
        return self._env

    def _arranged(self) -> dict[str, Any]:
        assert self._observed is not None
        return arrange(self._observed, self._pictures, self._layout)
