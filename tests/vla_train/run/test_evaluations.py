"""Evaluations on the way: greedy and sampled, before training too, resumed, and never of other weights."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vla_train.config import EvalConfig, TrainConfig
from vla_train.evaluation.evaluate import read_episodes
from vla_train.loop import train
from vla_train.pipeline.episodes import evaluation_episodes
from vla_train.report import write_report
from vla_train.run.run import Run
from vla_train.run.tracking import read_records
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.manifest import read_manifest

MakeRun = Callable[..., TrainConfig]
BOTH = {"every": 2, "before_training": True, "temperatures": (0.0, 1.0), "episodes_per_task": 4, "videos": 1}


def episodes(run: Path, iteration: int) -> dict[tuple[float, int], tuple[bool, float]]:
    """Outcomes by temperature and reset seed."""
    found = read_episodes(run / "evaluations" / f"iteration_{iteration:06d}" / "episodes.jsonl")
    outcomes = {(episode.temperature, episode.seed): (episode.success, episode.episode_return) for episode in found}
    assert len(outcomes) == len(found)
    return outcomes


def test_a_run_evaluates_before_training_and_then_greedily_and_sampled_each_time(
    small_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(iterations=2, eval=BOTH, display="plain")
    train(config)
    records = read_records(config.output, "eval")
    assert [record["iteration"] for record in records] == [0, 2]
    assert all(record["temperatures"] == [0.0, 1.0] for record in records)
    for iteration in (0, 2):
        outcomes = episodes(config.output, iteration)
        assert len(outcomes) == 8
        rates = {t: sum(success for (at, _), (success, _) in outcomes.items() if at == t) / 4 for t in (0.0, 1.0)}
        record = next(record for record in records if record["iteration"] == iteration)
        assert (record["success_rate"], record["success_rate_t1.0"]) == (rates[0.0], rates[1.0])
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("eval/success_rate_t1.0")] == [0, 2]
    assert not (config.output / "checkpoints" / "step_000000").exists(), "the start needs no checkpoint"
    shown = capsys.readouterr().out
    assert "evaluating: 4 greedy and 4 sampled at T = 1 episodes" in shown
    assert "evaluation before training" in shown
    assert f"greedy {records[0]['success_rate']:.0%} -> {records[1]['success_rate']:.0%}" in shown
    page = write_report(config.output).read_text()
    assert "before training" in page
    assert "evaluation (sampled at T = 1)" in page


def test_every_evaluation_films_the_episodes_that_the_first_one_filmed(small_run: MakeRun) -> None:
    config = small_run(iterations=2, eval={**BOTH, "every": 1, "episodes_per_task": 6})
    train(config)

    def filmed(iteration: int) -> set[tuple[float, int]]:
        found = read_episodes(config.output / "evaluations" / f"iteration_{iteration:06d}" / "episodes.jsonl")
        return {(episode.temperature, episode.seed) for episode in found if episode.video is not None}

    assert filmed(0)
    assert filmed(0) <= filmed(1)
    assert filmed(0) <= filmed(2)
    pairs = write_report(config.output).read_text().split('<div class="pairs">')[1].split('<div class="videos">')[0]
    assert pairs.count("<video") == 2 * len(filmed(0))
    assert pairs.index("before training") < pairs.index("after iteration 2")


def test_sampled_episodes_draw_from_the_seed_and_the_episode_alone(small_run: MakeRun, tmp_path: Path) -> None:
    sampled = {**BOTH, "temperatures": (1.6,), "episodes_per_task": 6}
    train(small_run(iterations=1, eval=sampled))
    alone = episodes(small_run().output, 0)
    changed = {"num_workers": 1, "envs_per_worker": 3}
    for name, others in (("more", {"temperatures": (0.0, 1.6), "episodes_per_task": 8}), ("fewer", {"episodes_per_task": 3})):
        config = dataclasses.replace(small_run(iterations=1, eval={**sampled, **others}, env=changed), output=tmp_path / name)
        train(config)
        again = episodes(config.output, 0)
        shared = alone.keys() & again.keys()
        assert len(shared) == min(6, sum(temperature == 1.6 for temperature, _ in again))
        assert {key: again[key] for key in shared} == {key: alone[key] for key in shared}
    config = dataclasses.replace(small_run(iterations=1, eval=sampled, seed=1), output=tmp_path / "seed")
    train(config)
    assert episodes(config.output, 0) != alone


def test_an_evaluation_before_training_that_was_interrupted_goes_on(small_run: MakeRun, tmp_path: Path) -> None:
    asked = {**BOTH, "episodes_per_task": 8}
    seed = evaluation_episodes([0], {}, EvalConfig(**asked), temperature=0.0, train_fraction=0.8, split_seed=0)[6].seed
    kwargs = {"fault": "terminate", "fault_seed": str(seed), "marker": str(tmp_path / "happened")}
    config = small_run(iterations=1, eval=asked, env={"kwargs": kwargs})
    with pytest.raises(SystemExit):
        train(config)
    journal = config.output / "evaluations" / "iteration_000000" / "episodes.jsonl"
    begun = journal.read_text().splitlines()
    assert 0 < len(begun) < 16
    train(config)
    assert journal.read_text().splitlines()[: len(begun)] == begun
    assert len(episodes(config.output, 0)) == 16
    assert [record["iteration"] for record in read_records(config.output, "eval")] == [0, 1]


def test_a_checkpoint_that_a_signal_during_its_evaluation_saved_gets_its_score_when_the_run_goes_on(
    small_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_of(checkpoint: Path) -> float | None:
        return read_manifest(checkpoint)["score"]

    asked = {"every": 1, "before_training": False, "episodes_per_task": 8, "temperatures": (0.0,), "videos": 0}
    seed = evaluation_episodes([0], {}, EvalConfig(**asked), temperature=0.0, train_fraction=0.8, split_seed=0)[6].seed
    kwargs = {"fault": "terminate", "fault_seed": str(seed), "marker": str(tmp_path / "happened")}
    config = small_run(iterations=3, checkpoint_every=3, eval=asked, env={"kwargs": kwargs})
    with pytest.raises(SystemExit):
        train(config)
    (saved,) = list_checkpoints(config.output)
    assert (saved.name, score_of(saved)) == ("step_000001", None)
    killed = RuntimeError("killed in the next update")
    monkeypatch.setattr(Run, "update", mock.Mock(side_effect=killed))
    with pytest.raises(RuntimeError, match="killed in the next update"):
        train(config)
    assert score_of(saved) is not None
    monkeypatch.undo()
    train(config)
    assert [record["iteration"] for record in read_records(config.output, "eval")] == [1, 2, 3]


@pytest.mark.parametrize(("seed", "kept"), [(0, True), (1, False)])
def test_a_start_is_not_evaluated_by_the_episodes_of_another_one(small_run: MakeRun, seed: int, kept: bool) -> None:
    config = small_run(iterations=1, eval=BOTH)
    train(config)
    journal = config.output / "evaluations" / "iteration_000000" / "episodes.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps({**line, "episode_return": 9.0}) + "\n" for line in lines))
    for checkpoint in (config.output / "checkpoints").iterdir():
        checkpoint.rename(config.output / checkpoint.name)  # as if it had ended before the first one
    train(small_run(iterations=1, eval=BOTH, seed=seed))
    assert ({line["episode_return"] for line in map(json.loads, journal.read_text().splitlines())} == {9.0}) == kept


@pytest.mark.parametrize("temperatures", [(), (0.0, 0.0), (-1.0,), (float("nan"),)])
def test_temperatures_that_make_no_sense_are_refused(temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"eval\.temperatures"):
        EvalConfig(temperatures=temperatures)
