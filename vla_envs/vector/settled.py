"""Starts that have settled: each is played to rest and drawn once, and copied into every slot that begins there afterwards.

Invariant: what is kept fits into `SETTLED_BYTES`; those that were not used for longest go first.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from vla_envs.vector.engine import ACTION_DIM, Engine, array_bytes
from vla_envs.vector.start import Start

SETTLING_ACTION = np.array([0.0] * (ACTION_DIM - 1) + [-1.0])
"""What LIBERO plays while a scene comes to rest: no motion, gripper open."""

SETTLED_BYTES = 256 << 20
"""Of the settled starts that an env keeps: states and pictures."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A start after settling, ready to be copied into any slot."""

    saved: Any
    num_bytes: int


class SettledStarts(OrderedDict[Hashable, Settled]):
    """Key of a start -> that start, the least recently used first.

    Args:
        engine: Settles and copies.
        settle_steps: Control steps without motion.
    """

    def __init__(self, engine: Engine, *, settle_steps: int) -> None:
        super().__init__()
        self._engine = engine
        self._actions = np.tile(SETTLING_ACTION, (settle_steps, 1))

    def begin(self, starts: Mapping[int, Start], to_come: Callable[[int], Iterable[Start]]) -> None:
        """Put each slot where its start has settled.

        Args:
            starts: By slot.
            to_come: Other starts of a task that are likely to be asked for; they are settled along where it costs nothing.
        """
        if not starts:
            return
        unsettled: dict[Hashable, int] = {}
        for slot, start in starts.items():
            if start.key not in self:
                unsettled.setdefault(start.key, slot)
        if unsettled:
            self._settle({slot: starts[slot] for slot in unsettled.values()}, to_come)
        saved = [self[start.key].saved for start in starts.values()]
        self._engine.restore(list(starts), [start.scene for start in starts.values()], saved)
        looks = {slot: start.look for slot, start in starts.items() if start.look is not None}
        if looks:
            self._engine.dress(looks)
        for start in starts.values():
            self.move_to_end(start.key)
        self._forget()

    def _settle(self, starts: Mapping[int, Start], to_come: Callable[[int], Iterable[Start]]) -> None:
        slots, chosen = list(starts), list(starts.values())
        known = {start.key for start in chosen} | self.keys()
        for scene, count in self._engine.room_to_settle(slots, [start.scene for start in chosen]).items():
            task_id = next(start.task_id for start in chosen if start.scene is scene)
            chosen += islice((start for start in to_come(task_id) if start.key not in known), count)
        scenes, states = [start.scene for start in chosen], [start.state for start in chosen]
        for start, saved in zip(chosen, self._engine.settle(slots, scenes, states, self._actions), strict=True):
            self[start.key] = Settled(saved=saved, num_bytes=array_bytes(saved))

    def _forget(self) -> None:
        num_bytes = sum(settled.num_bytes for settled in self.values())
        while num_bytes > SETTLED_BYTES:
            num_bytes -= self.popitem(last=False)[1].num_bytes
