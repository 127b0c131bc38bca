"""What a run's folder holds, read once: all that the report knows comes from here.

Reads only, so that a run that is still going on is not disturbed; whatever does not exist yet is None or empty.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_train.config_file import RunConfig, run_config
from vla_train.evaluation.evaluate import EpisodeResult, EvaluationResult, read_episodes
from vla_train.evaluation.record import evaluation_record, summaries
from vla_train.pipeline.timeline import Span, read_chrome_trace
from vla_train.run.tracking import METRICS_FILE, read_records
from vla_train.sft.config import SftConfig

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One folder of `evaluations/`: of an iteration of the run, or of a checkpoint that `eval` was given."""

    name: str
    """Name of the folder, such as `iteration_000010`."""
    results: Mapping[float, Record]
    """By temperature, as `evaluation.summary` gives them; none before the first episode has ended."""
    complete: bool
    """Whether all its episodes have been played."""
    videos: tuple[tuple[Path, EpisodeResult], ...]
    """Video files that are there, with the episode that each shows."""
    missing_videos: int
    """Videos that the results name and that are not there."""

    @property
    def title(self) -> str:
        """What was evaluated, in words."""
        kind, _, number = self.name.rpartition("_")
        if kind == "iteration" and number.isdigit() and int(number) == 0:
            return "before training"
        known = {"iteration": "after iteration", "step": "checkpoint of iteration"}
        return f"{known[kind]} {int(number)}" if kind in known and number.isdigit() else self.name

    @property
    def of_iteration(self) -> bool:
        """Whether the run itself evaluated, rather than `eval`."""
        return self.name.startswith("iteration_")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContents:
    """A run, as its folder tells it."""

    path: Path
    config: RunConfig
    config_json: Mapping[str, Any]
    iterations: tuple[Record, ...]
    """One per iteration done (of supervised training: per point of its curves), oldest first: `Run.record` and `SftRun` name
    what is in them."""
    evaluation_records: tuple[Record, ...]
    """One per evaluation within training, oldest first: `evaluation.record`, and its folder."""
    evaluations: tuple[Evaluation, ...]
    """Newest first."""
    timeline_picture: Path | None
    """The newest."""
    spans: tuple[Span, ...]
    """What the picture shows; empty where its trace is missing."""

    @property
    def unit(self) -> str:
        """What is counted."""
        return "step" if isinstance(self.config, SftConfig) else "iteration"

    @property
    def planned(self) -> int:
        """How many are asked for."""
        return self.config.steps if isinstance(self.config, SftConfig) else self.config.iterations

    @property
    def done(self) -> int:
        """Iterations, or steps, done."""
        return int(self.iterations[-1]["iteration"]) if self.iterations else 0

    @property
    def timeline_iteration(self) -> int | None:
        """The iteration that picture and spans are of."""
        return None if self.timeline_picture is None else int(self.timeline_picture.stem.rpartition("_")[2])


def read_run(run: Path) -> RunContents:
    """Read a run's folder.

    Raises:
        ValueError: It is not the folder of a run, or something in it is damaged; the message names the file.
    """
    try:
        config_json = json.loads((run / "config.json").read_text(encoding="utf-8"))
        config = run_config(config_json)
    except OSError as error:
        raise ValueError(f"{run} is not the folder of a run: config.json: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / 'config.json'} is not the config of a run: {error}") from error
    records = read_records(run)
    own_evaluations = {_folder_of(record, run): record for record in records if record["kind"] == "eval"}
    names = {folder.name for folder in (run / "evaluations").glob("*") if folder.is_dir()} | set(own_evaluations)
    iterations = tuple(record for record in records if record["kind"] == "iteration")
    logged = {f"iteration_{record['iteration']:06d}" for record in iterations}  # a resumed run forgets the others
    picture = max((file for file in (run / "timeline").glob("*.png") if file.stem in logged), default=None)
    trace = None if picture is None else picture.with_suffix(".json.gz")
    return RunContents(
        path=run,
        config=config,
        config_json=config_json,
        iterations=iterations,
        evaluation_records=tuple(own_evaluations.values()),
        evaluations=tuple(
            _read_evaluation(run / "evaluations" / name, own_evaluations.get(name))
            for name in sorted(names, key=_age, reverse=True)
        ),
        timeline_picture=picture,
        spans=tuple(read_chrome_trace(trace)) if trace is not None and trace.exists() else (),
    )


def _folder_of(record: Record, run: Path) -> str:
    """Name of an evaluation's folder, as the run's log has it."""
    if not isinstance(record.get("folder"), str):
        raise ValueError(f"{run / METRICS_FILE}: the evaluation after iteration {record['iteration']} has no folder")
    return Path(record["folder"]).name


def _age(name: str) -> tuple[int, str]:
    """Sorts evaluations by the iteration in their name."""
    number = re.search(r"\d+$", name)
    return int(number.group()) if number else -1, name


def _read_evaluation(folder: Path, record: Record | None) -> Evaluation:
    """Read one evaluation; `record` is what the run's log says of it, if it belongs to an iteration and has ended."""
    episodes: list[EpisodeResult] = []
    videos: list[tuple[Path, EpisodeResult]] = []
    missing = 0
    for journal in sorted(folder.rglob("episodes.jsonl")):  # each rank of a run over several GPUs keeps its own
        for episode in read_episodes(journal):
            episodes.append(episode)
            if episode.video is not None:
                file = journal.parent / "videos" / episode.video
                if file.is_file():
                    videos.append((file, episode))
                else:
                    missing += 1
    results = _read_results(folder / "results.json") or (None if record is None else _summaries(record, folder))
    complete = results is not None
    if results is None:
        results = summaries(evaluation_record(_by_temperature(episodes))) if episodes else {}
    return Evaluation(
        name=folder.name,
        results=results,
        complete=complete,
        videos=tuple(videos),
        missing_videos=missing,
    )


def _by_temperature(episodes: list[EpisodeResult]) -> list[EvaluationResult]:
    return [
        EvaluationResult(episodes=tuple(e for e in episodes if e.temperature == temperature), temperature=temperature)
        for temperature in dict.fromkeys(episode.temperature for episode in episodes)
    ]


def _read_results(file: Path) -> Mapping[float, Record] | None:
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and evaluate again") from error
    return _summaries(record, file)


def _summaries(record: Any, source: Path) -> Mapping[float, Record]:
    try:
        return summaries(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} is damaged (no success rates: {error!r}): delete it, and evaluate again") from error
