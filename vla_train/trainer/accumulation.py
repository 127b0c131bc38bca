"""The gradients of an iteration, added up group by group, so that training can begin before the last group was played.

    during the rollout   advance, whenever nobody waits for a decision: one micro-batch of the groups that are complete and kept
    after it             advance for what is left; then the step, scaled by what all weights sum to

Invariant: a group is cut into micro-batches by itself, and groups follow one another in the order of their ids. So the sums are
the same to the bit however much was done early, and the weights stay as they are until the step.
"""

from collections.abc import Callable, Iterator, Sequence

from vla_train.algo.losses import LossOutput
from vla_train.config import AlgoConfig
from vla_train.config_checks import require
from vla_train.registry import ESTIMATORS, load
from vla_train.trainer.parallel import Ranks
from vla_train.types import Group, TrainBatch


def require_accumulable(algo: AlgoConfig, ranks: Ranks) -> None:
    """Refuse `optim.accumulate_during_rollout` where a config alone cannot tell: ranks, and an estimator of the user's."""
    name = "optim.accumulate_during_rollout"
    require(ranks.size == 1, f"{name} works on one rank, got {ranks.size}: ranks share their rows when all have played")
    known = algo.advantage in ESTIMATORS
    per_group = known or getattr(load(algo.advantage, ESTIMATORS, option="algo.advantage"), "per_group", False)
    require(
        per_group,
        f"{name} needs an estimator that looks at one group at a time: if {algo.advantage} does, set its per_group = True",
    )


class Accumulation:
    """Gradients of one iteration, as far as they have been computed. An error, wherever it comes from, discards all of them.

    Args:
        cut: Micro-batches of a group. Weights are relative ones: what they sum to is not known yet.
        backward: Adds the gradients of a micro-batch to those before.
        discard: Forgets all gradients.
    """

    def __init__(
        self,
        *,
        cut: Callable[[Group], Iterator[TrainBatch]],
        backward: Callable[[TrainBatch], LossOutput],
        discard: Callable[[], None],
    ) -> None:
        self._cut = cut
        self._backward = backward
        self._discard = discard
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self._discard()
        self._begun: list[Group] = []
        self._left: Iterator[TrainBatch] = iter(())
        """Of the group that was begun last."""
        self.sums: list[LossOutput] = []
        """Of each micro-batch so far."""
        self.rows = 0
        self.early_s = 0.0
        """Seconds of training during the rollout."""

    def began_with(self, groups: Sequence[Group]) -> bool:
        """Whether what was done so far belongs to the first of these groups."""
        begun, given = (
            [trajectory for group in part for trajectory in group.trajectories]
            for part in (self._begun, groups[: len(self._begun)])
        )
        return len(begun) == len(given) and all(one is other for one, other in zip(begun, given, strict=True))

    def advance(self, groups: Sequence[Group]) -> int:
        """Train on the next micro-batch.

        Args:
            groups: By id, the same as at each call before, and perhaps more.

        Returns:
            Its rows; 0 where nothing is left.
        """
        try:
            while (microbatch := next(self._left, None)) is None:
                if len(self._begun) == len(groups):
                    return 0
                group = groups[len(self._begun)]
                self._begun.append(group)
                self._left = self._cut(group)
            self.sums.append(self._backward(microbatch))
            self.rows += len(microbatch)
            return len(microbatch)
        except BaseException:
            self.reset()
            raise
