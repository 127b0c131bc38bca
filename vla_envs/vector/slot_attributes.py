"""`call`, `get_attr` and `set_attr`, as Gymnasium's SyncVectorEnv has them, for a vector env that has slots and no envs inside.

A name means what it would mean to an env of one slot: the task of the slot's present episode, its picture, its state. What is
the whole env's is given N times.
"""

import threading
from abc import abstractmethod
from typing import Any

import numpy as np

from vla_envs.vector.options import check_integer

_TEXTS = ("task_description", "task", "instruction")
_EPISODE = ("task_id", "init_state_id")
_GIVES_N = ("render", "get_state", "camera_intrinsics", "camera_extrinsics", "render_every")
"""Of the whole env, that has or returns something for each slot."""
_OF_EACH = ("render_every",)
"""What may be set to another value in each slot."""
_MOVES_ALL = ("reset", "step", "set_state")
_OTHER_NAMES = {"_max_episode_steps": "max_episode_steps"}
"""What Gymnasium's TimeLimit and LeRobot call it."""


class SlotAttributes:
    """What a vector env with slots needs to be asked as if it had N envs inside."""

    num_envs: int
    max_episode_steps: int
    _busy: threading.RLock
    _slot_methods: tuple[str, ...] = ()
    """Methods whose first argument is a slot."""
    _settable: tuple[str, ...] = ("max_episode_steps", "render_every")

    @property
    @abstractmethod
    def task_description(self) -> tuple[str, ...]:
        """N texts: what the robot is asked to do in each slot's present episode."""

    @abstractmethod
    def _identity(self) -> dict[str, np.ndarray]:
        """Which episode each slot plays: `task_id` and `init_state_id`, (N,)."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """An attribute of each slot, or what a method returns for each slot.

        Args:
            name: `task_description` (also `task`, `instruction`), `task_id`, `init_state_id`, `render`, `get_state`,
                `camera_intrinsics`, `camera_extrinsics`, `render_every`, and methods that take a slot: of each slot. Any
                other: the whole env's, asked for once and given N times.
            args: Of a method, without the slot.
            kwargs: The same.

        Raises:
            AttributeError: There is none of that name, or it is `reset`, `step` or `set_state`, which move all slots at once.
        """
        if name in _MOVES_ALL:
            raise AttributeError(f"{name!r} cannot be called for each slot: it moves all slots at once, call {name}() itself")
        with self._busy:
            if name in _TEXTS:
                return self.task_description
            if name in _EPISODE:
                return tuple(self._identity()[name].tolist())
            found = getattr(self, _OTHER_NAMES.get(name, name))
            if name in self._slot_methods:
                return tuple(found(slot, *args, **kwargs) for slot in range(self.num_envs))
            result = found(*args, **kwargs) if callable(found) else found
            return tuple(result) if name in _GIVES_N and result is not None else (result,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The same as `call` without arguments, as in Gymnasium."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute from now on: `max_episode_steps` (also `_max_episode_steps`), one time limit for all slots, or
        `render_every`, which may differ between slots.

        Args:
            name: Which.
            values: One value, or a list or tuple of N.

        Raises:
            AttributeError: There is none of that name, or it cannot be set.
            ValueError: Not N values, different ones, or one that cannot be; nothing was set.
        """
        own_name = _OTHER_NAMES.get(name, name)
        if own_name not in self._settable:
            if name not in (*_TEXTS, *_EPISODE):
                getattr(self, name)
            advice = "; reset takes it, as options" if name in _EPISODE else ""
            raise AttributeError(f"{name!r} cannot be set{advice}: set_attr takes {', '.join(self._settable) or 'nothing'}")
        given = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(given) != self.num_envs:
            raise ValueError(f"set_attr takes one value or {self.num_envs}, got {len(given)}")
        with self._busy:
            if own_name in _OF_EACH:
                setattr(self, own_name, tuple(given))  # which checks them
                return
            for value in given:
                check_integer(name, value, least=1)
            if len(set(given)) > 1:
                raise ValueError(f"all slots have the same {name}, got {given}")
            setattr(self, own_name, int(given[0]))
