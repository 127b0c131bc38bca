"""Starts with what a `Randomization` draws for them: where fixtures stand, and how the episode looks.

Invariant: what is drawn is a function of the task and the episode's seed, never of the slot. Scenes that others share stay as
they are: a slot whose fixtures move has a model of its own, which it keeps from episode to episode of a task.
"""

from dataclasses import replace
from pathlib import Path

from vla_envs.errors import MissingDependencyError
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.fixtures import FixturePlacement, draw_fixtures, fixture_placements
from vla_envs.libero.suites import benchmark_suite
from vla_envs.vector.look import draw_look
from vla_envs.vector.randomization import Randomization
from vla_envs.vector.start import Start

EPISODE_SEEDS = 2**63
"""An episode draws its seed below this from its slot's stream."""


class RandomizedStarts:
    """Draws what is random about starts.

    Args:
        what: What is drawn.
        suite: Whose tasks are played.
        scene_dir: Where scenes come from; None: from the cache.

    Raises:
        MissingDependencyError: Fixtures are to be moved, and LIBERO, whose task files say where to, is not installed.
    """

    def __init__(self, what: Randomization, *, suite: str, scene_dir: Path | None) -> None:
        self._what = what
        self._placements: dict[int, tuple[FixturePlacement, ...]] = {}
        """By task."""
        self._own: dict[int, LiberoEngineScene] = {}
        """By slot."""
        if what.fixtures:
            try:
                benchmark_suite(suite)
            except (MissingDependencyError, ValueError) as error:
                where = "" if scene_dir is None else f", which {scene_dir} does not hold"
                raise MissingDependencyError(f"moving fixtures needs LIBERO's own task files{where} ({error})") from error

    def draw(self, start: Start, slot: int, seed: int) -> Start:
        """The start as this seed has it, in a slot that is about to begin there."""
        shared = start.scene
        assert isinstance(shared, LiberoEngineScene)
        with shared.switch_lock:  # for as long as it wears no other episode's look
            start = replace(start, look=draw_look(shared.model, self._what, seed))
            if not self._what.fixtures or not self._placements_of(shared):
                return start
            own = self._own.get(slot)
            if own is None or own.drawn_as is not shared:
                own = self._own[slot] = shared.with_own_model()
        own.move(draw_fixtures(self._placements_of(shared), shared.model, seed))
        return replace(start, scene=own, key=(start.key, seed))

    def _placements_of(self, scene: LiberoEngineScene) -> tuple[FixturePlacement, ...]:
        task_id = scene.scene.task_id
        if task_id not in self._placements:
            self._placements[task_id] = fixture_placements(scene.scene)
        return self._placements[task_id]

    def clear(self) -> None:
        """Free the slots' models."""
        self._own.clear()
