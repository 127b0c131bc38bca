"""Evaluations of a run's weights on the way: played by all ranks, written down, shown.

    RUN/evaluations/iteration_000010/    episodes.jsonl and videos/; other ranks' in folders of their own

An episode that is in any of them is not played again, whichever rank's it was and however many ranks go on.
The episodes whose videos the first of them keeps are filmed in all: the same starts before and after.

Invariant: what a folder holds was played by the weights after so many iterations, also after a resume.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_train.config_file import RunConfig
from vla_train.display import Display
from vla_train.evaluation.display import evaluate_with_progress, show_evaluation
from vla_train.evaluation.evaluate import EpisodeResult, EvaluationResult, Identity, identity, play_name, read_episodes
from vla_train.evaluation.record import evaluation_record
from vla_train.pipeline.episodes import evaluation_plan
from vla_train.pipeline.rollout import Rollout
from vla_train.trainer.parallel import Ranks
from vla_train.types import EnvDescription, EpisodeSpec

_FOLDER = "evaluations"


class RunEvaluations:
    """Evaluates a run's weights.

    Args:
        config: Of the run.
        env: Which tasks and initial states there are to play.
        ranks: Who else plays.
        display: Shows progress and tables.
    """

    def __init__(self, config: RunConfig, env: EnvDescription, *, ranks: Ranks, display: Display) -> None:
        self._config = config.eval
        self._output = config.output
        self._episodes: Mapping[float, Sequence[EpisodeSpec]] = {}
        """What is played, by temperature, the deciding one first; the same each time."""
        if config.eval.every:
            self._episodes = evaluation_plan(
                env, config.eval, train_fraction=config.train_fraction, split_seed=config.split_seed
            )
        self._env = env
        self._ranks = ranks
        self._display = display

    def play(self, rollout: Rollout, *, iteration: int, title: str) -> tuple[float, dict[str, Any]]:
        """Play the episodes that were not played yet, each rank its share; all ranks must call this.

        Args:
            rollout: Its policy has the weights to evaluate.
            iteration: Names the folder.
            title: Says what was evaluated.

        Returns:
            The success rate that tells which weights are the best, and what the run's log should say.
        """
        folder = self._output / _FOLDER / f"iteration_{iteration:06d}"
        ranks = self._ranks
        counts = [f"{len(specs)} {play_name(temperature)}" for temperature, specs in self._episodes.items()]
        self._display.line(f"evaluating: {' and '.join(counts)} episodes")
        held, filmed = ranks.gather_objects((_held(folder), self._filmed_first()) if ranks.rank == 0 else None)[0]
        with ranks.apart():
            mine = evaluate_with_progress(
                {temperature: self._share(specs, temperature, held) for temperature, specs in self._episodes.items()},
                rollout,
                self._config,
                folder=_folder_of(ranks.rank, folder),
                env=self._env,
                display=self._display,
                filmed=filmed,
            )
        results = [
            EvaluationResult(episodes=self._united(temperature, parts, held), temperature=temperature)
            for temperature, *parts in zip(self._episodes, *ranks.gather_objects(mine), strict=True)
        ]
        show_evaluation(self._display, results, title=f"evaluation {title}; videos in {folder}/videos")
        return results[0].success_rate, {
            **evaluation_record(results),
            "folder": str(folder.relative_to(self._output)),
        }

    def _share(self, specs: Sequence[EpisodeSpec], temperature: float, held: Sequence["_Held"]) -> list[EpisodeSpec]:
        """What this rank plays, or has played."""
        ranks = self._ranks
        player = {identity(one.episode, one.episode.temperature): one.rank for one in held}
        left = [spec for spec in specs if identity(spec, temperature) not in player]
        mine = {identity(spec, temperature) for spec in left[ranks.rank :: ranks.size]}
        mine |= {name for name, rank in player.items() if rank == ranks.rank}
        return [spec for spec in specs if identity(spec, temperature) in mine]

    def _united(
        self, temperature: float, parts: Sequence[EvaluationResult], held: Sequence["_Held"]
    ) -> tuple[EpisodeResult, ...]:
        """What all ranks have played, and those that there are no longer."""
        wanted = {identity(spec, temperature) for spec in self._episodes[temperature]}
        gone = [
            one.episode
            for one in held
            if one.rank >= self._ranks.size and identity(one.episode, one.episode.temperature) in wanted
        ]
        return (*(episode for part in parts for episode in part.episodes), *gone)

    def _filmed_first(self) -> set[Identity]:
        """The episodes whose videos the run's first evaluation keeps."""
        folders = sorted((self._output / _FOLDER).glob("iteration_*"))
        journals = folders[0].rglob("episodes.jsonl") if folders else ()
        episodes = [episode for journal in journals for episode in read_episodes(journal)]
        return {identity(episode, episode.temperature) for episode in episodes if episode.video is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """An episode that was played already."""

    rank: int
    """Who wrote it down."""
    episode: EpisodeResult


def _folder_of(rank: int, folder: Path) -> Path:
    return folder / f"rank_{rank}" if rank else folder


def _held(folder: Path) -> list[_Held]:
    """What a folder of an evaluation holds, of any number of ranks."""
    ranks = [0, *sorted(int(part.name.removeprefix("rank_")) for part in folder.glob("rank_*"))]
    return [
        _Held(rank=rank, episode=episode)
        for rank in ranks
        for episode in read_episodes(_folder_of(rank, folder) / "episodes.jsonl")
    ]


def forget_evaluations(output: Path, *, after: int) -> None:
    """Delete a run's evaluations of more than `after` iterations: of weights that were lost."""
    for folder in (output / _FOLDER).glob("iteration_*"):
        number = re.fullmatch(r"iteration_(\d+)", folder.name)
        if number and int(number[1]) > after:
            shutil.rmtree(folder)
