"""Which prompts a rank plays: of one stream that all ranks draw, group g is that of rank g % W.

Invariant: every group of the stream is begun exactly once, also when the number of ranks W changes between two parts of a run.
Ranks are not equally far (whoever meets groups without signal plays more), so a position is a set: all groups below
`next_group_id`, and some above.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_train.pipeline.episodes import PromptStream
from vla_train.types import EpisodeSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPosition:
    """Which groups of the stream were begun, by all ranks together."""

    next_group_id: int = 0
    """The first that was not."""
    begun_ahead: tuple[int, ...] = ()
    """Those after it that were, in order."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PromptPosition":
        """What `asdict` gave, as JSON brings it back; or what earlier versions wrote, a number for each rank."""
        if "next_group_ids" in data:
            return cls(next_group_id=min(data["next_group_ids"]))
        return cls(next_group_id=data["next_group_id"], begun_ahead=tuple(data["begun_ahead"]))


class PromptShare(Iterator[tuple[EpisodeSpec, ...]]):
    """One rank's part of a stream.

    Args:
        stream: Of all prompts; each rank has one of its own.
        rank: This one.
        size: W.
    """

    def __init__(self, stream: PromptStream, *, rank: int, size: int) -> None:
        self._stream = stream
        self._rank = rank
        self._size = size
        self._begun_ahead: frozenset[int] = frozenset()

    def __next__(self) -> tuple[EpisodeSpec, ...]:
        while True:
            prompt = next(self._stream)
            if self.is_own(prompt[0].group_id) and prompt[0].group_id not in self._begun_ahead:
                return prompt

    def is_own(self, group_id: int) -> bool:
        """Whether a group is for this rank to play."""
        return group_id % self._size == self._rank

    @property
    def next_group_id(self) -> int:
        """All of this rank's groups below it were begun, and none above that were not when it started."""
        return self._stream.next_group_id

    def position(self, next_group_ids: Sequence[int]) -> PromptPosition:
        """How far all ranks are together; `next_group_ids` is each rank's, by rank."""

        def begun(group_id: int) -> bool:
            return group_id < next_group_ids[group_id % self._size] or group_id in self._begun_ahead

        end = max(*next_group_ids, *(group_id + 1 for group_id in self._begun_ahead), 0)
        first = next(group_id for group_id in range(min(next_group_ids), end + 1) if not begun(group_id))
        return PromptPosition(
            next_group_id=first, begun_ahead=tuple(group_id for group_id in range(first, end) if begun(group_id))
        )

    def go_on_from(self, position: PromptPosition) -> None:
        """Play this rank's share of what was not begun."""
        self._stream.next_group_id = position.next_group_id
        self._begun_ahead = frozenset(position.begun_ahead)
