"""The text of an observation, in a space that lets it through shared memory.

Gymnasium's `AsyncVectorEnv` with shared memory reads a text once, before its workers have written one: from then on every
observation would hold the same blanks. For the space here it is given texts that are read when they are looked at.
"""

from collections.abc import Iterator, Sequence
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any, overload

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import read_from_shared_memory


class Instruction(gym.spaces.Text):
    """A text that survives shared memory."""


class SharedTexts(Sequence[str]):
    """N texts in memory that other processes write, read anew at each look; a copy is a tuple that stays as it is.

    Args:
        space: Of one text.
        memory: (N * the longest text's length) int32: places in the space's list of characters; past its end, nothing.
        num_texts: N.
    """

    def __init__(self, space: Instruction, memory: SynchronizedArray, num_texts: int) -> None:
        self._characters = np.array([*space.character_list, ""])
        self._codes = np.frombuffer(memory.get_obj(), np.int32).reshape(num_texts, space.max_length)  # type: ignore[call-overload]

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[str]:
        texts = self._characters[np.minimum(self._codes, len(self._characters) - 1)]
        return iter(["".join(text) for text in texts])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return repr(tuple(self))


@read_from_shared_memory.register(Instruction)
def _read_when_looked_at(space: Instruction, shared_memory: SynchronizedArray, n: int = 1) -> SharedTexts:
    return SharedTexts(space, shared_memory, n)
