"""What episodes are played for: the groups of an iteration, or single episodes of an evaluation.

Called by the conductor, in its thread; a caller looks at the outcome when the rollout has ended.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from vla_train.pipeline.dynamic_sampling import DynamicSampling
from vla_train.pipeline.rollout_result import RolloutProgress
from vla_train.types import EpisodeSpec, Group, Trajectory

_PROGRESS_INTERVAL_S = 0.2


class Objective(Protocol):
    """What the conductor plays episodes for."""

    @property
    def complete(self) -> bool:
        """Nothing more needs to be played."""
        ...

    def feed(self, wanted: int) -> Iterable[EpisodeSpec]:
        """Episodes to queue, now that the slots could take `wanted` more; none if there are none."""
        ...

    def finished(self, trajectory: Trajectory) -> None:
        """An episode has ended."""
        ...

    def advanced(self) -> None:
        """Some decisions were taken (for progress displays)."""
        ...


class CollectGroups:
    """The objective of `collect`."""

    def __init__(
        self,
        sampling: DynamicSampling,
        prompts: Iterator[tuple[EpisodeSpec, ...]],
        keep: Callable[[Group], bool],
        on_progress: Callable[[RolloutProgress], None] | None,
        progress: Callable[[], RolloutProgress] | None,
    ) -> None:
        self._sampling = sampling
        self._prompts = prompts
        self._keep = keep
        self._on_progress = on_progress
        self._progress = progress
        self._exhausted = False
        self._told = 0.0
        sampling.consume()

    @property
    def complete(self) -> bool:
        return self._sampling.complete or (self._exhausted and not self._sampling.open_groups)

    def feed(self, wanted: int) -> Iterator[EpisodeSpec]:
        while wanted > 0 and not self._exhausted and self._sampling.wants_prompt:
            specs = next(self._prompts, None)
            if specs is None:
                self._exhausted = True
                return
            self._sampling.launch(specs)
            wanted -= len(specs)
            yield from specs

    def finished(self, trajectory: Trajectory) -> None:
        group = self._sampling.add(trajectory)
        if group is not None:
            self._sampling.judge(group, keep=self._keep(group))
            self._tell()

    def advanced(self) -> None:
        if time.monotonic() - self._told > _PROGRESS_INTERVAL_S:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._on_progress is not None and self._progress is not None:
            self._on_progress(self._progress())


class PlayEpisodes:
    """The objective of `play`."""

    def __init__(self, specs: Iterator[EpisodeSpec], trajectories: list[Trajectory]) -> None:
        self._specs = specs
        self._trajectories = trajectories
        self._exhausted = False
        self._open = 0

    @property
    def complete(self) -> bool:
        return self._exhausted and self._open == 0

    def feed(self, wanted: int) -> Iterator[EpisodeSpec]:
        for _ in range(wanted):
            spec = next(self._specs, None)
            if spec is None:
                self._exhausted = True
                return
            self._open += 1
            yield spec

    def finished(self, trajectory: Trajectory) -> None:
        self._open -= 1
        self._trajectories.append(trajectory)

    def advanced(self) -> None:
        pass
