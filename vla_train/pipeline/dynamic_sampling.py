"""Which groups an iteration plays and keeps: a pure state machine (dynamic sampling, DAPO, arXiv 2503.14476).

Groups are launched in the order of their ids and *consumed in that order*, whichever finishes first: short episodes get no
preference, and no group is left behind. An iteration is over when enough consumed groups carried a signal, or when it has
consumed its allowance. Groups finished beyond that are carried over to the next iteration.

With `lookahead` 0, a group is launched only when the launched ones could not fill the iteration even if all were kept; then
everything launched is also consumed, and the groups of an iteration do not depend on timing at all. With a lookahead, slots
that would idle at the end of an iteration start the next one's groups instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from vla_train.types import EpisodeSpec, Group, Trajectory


@dataclass(slots=True)
class OpenGroup:
    """A group that was launched and not consumed yet."""

    specs: tuple[EpisodeSpec, ...]
    trajectories: dict[int, Trajectory] = field(default_factory=dict)
    """Finished samples by sample_id."""
    keep: bool | None = None
    """Whether it carries a signal; None while it is being played."""

    @property
    def finished(self) -> bool:
        return len(self.trajectories) == len(self.specs)

    def as_group(self) -> Group:
        """The finished samples, by sample_id."""
        samples = tuple(self.trajectories[sample_id] for sample_id in sorted(self.trajectories))
        return Group(group_id=self.specs[0].group_id, trajectories=samples)

    @property
    def unplayed(self) -> list[EpisodeSpec]:
        return [spec for spec in self.specs if spec.sample_id not in self.trajectories]


class DynamicSampling:
    """Launches, collects and consumes groups.

    Args:
        groups_per_iteration: Kept groups that make an iteration complete.
        max_groups: Groups that one iteration may consume, kept or not.
        lookahead: Groups that may be launched beyond this iteration's need.
    """

    def __init__(self, *, groups_per_iteration: int, max_groups: int, lookahead: int) -> None:
        self._target = groups_per_iteration
        self._max_groups = max_groups
        self.lookahead = lookahead
        self._open: dict[int, OpenGroup] = {}  # in the order of launching
        self._consumed: list[OpenGroup] = []
        self._kept = 0
        self._handed_out: list[OpenGroup] = []

    @property
    def complete(self) -> bool:
        """The iteration is over."""
        return self.kept >= self._target or len(self._consumed) >= self._max_groups

    @property
    def kept(self) -> int:
        """Groups of this iteration that carry a signal, so far."""
        return self._kept

    @property
    def consumed(self) -> int:
        """Groups of this iteration, kept or not, so far."""
        return len(self._consumed)

    @property
    def open_groups(self) -> tuple[OpenGroup, ...]:
        return tuple(self._open.values())

    @property
    def wants_prompt(self) -> bool:
        """Whether one more group should be launched as soon as slots are free."""
        hopeful = sum(group.keep is not False for group in self._open.values())
        needed = self._target - self.kept
        allowed = self._max_groups - len(self._consumed) - len(self._open)
        return hopeful < needed + self.lookahead and allowed + self.lookahead > 0

    def launch(self, specs: Iterable[EpisodeSpec]) -> OpenGroup:
        """Open a group.

        Raises:
            ValueError: The specs are not one new group of distinct samples.
        """
        group = OpenGroup(specs=tuple(specs))
        ids = {spec.group_id for spec in group.specs}
        if len(ids) != 1 or len({spec.sample_id for spec in group.specs}) != len(group.specs):
            raise ValueError(f"a prompt must hold distinct samples of one group, got {group.specs}")
        group_id = ids.pop()
        if group_id in self._open:
            raise ValueError(f"group {group_id} was launched twice")
        self._open[group_id] = group
        return group

    def add(self, trajectory: Trajectory) -> Group | None:
        """Take a finished episode; returns the group if this was its last one. It must then be judged."""
        spec = trajectory.spec
        group = self._open[spec.group_id]
        assert spec in group.unplayed, f"{spec} was played twice or never asked for"
        group.trajectories[spec.sample_id] = trajectory
        return group.as_group() if group.finished else None

    def judge(self, group: Group, *, keep: bool) -> None:
        """Say whether a finished group carries a signal; consumes what can be consumed.

        Of a group without one, only the outcome is kept: it may wait long for an older group, and nobody trains on it.
        """
        judged = self._open[group.group_id]
        judged.keep = keep
        if not keep:
            judged.trajectories = {
                sample: replace(played, observations={}, decisions={}) for sample, played in judged.trajectories.items()
            }
        self.consume()

    def consume(self) -> None:
        """Take finished groups into the iteration, oldest first, as long as it is not complete."""
        while self._open and not self.complete:
            group_id, group = next(iter(self._open.items()))
            if group.keep is None:
                break
            self._consumed.append(self._open.pop(group_id))
            self._kept += group.keep

    @property
    def outcome(self) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """The iteration's groups so far: (kept ones, all consumed ones)."""
        kept = tuple(group.as_group() for group in self._consumed if group.keep)
        return kept, tuple(group.as_group() for group in self._consumed)

    def begin_next(self) -> None:
        """Hand the iteration's groups out; they stay `pending` until `release`. What is open stays for the next one."""
        self._handed_out, self._consumed, self._kept = self._consumed, [], 0

    def release(self) -> None:
        """Forget the groups handed out: what was learnt from them is in the weights."""
        self._handed_out = []

    def pending(self) -> tuple[OpenGroup, ...]:
        """All that was launched and not released, in order: what a checkpoint must hold."""
        return (*self._handed_out, *self._consumed, *self._open.values())

    def restore(self, groups: Iterable[OpenGroup]) -> None:
        """Start from what `pending` gave."""
        self._handed_out, self._consumed, self._kept = [], [], 0
        self._open = {group.specs[0].group_id: group for group in groups}
