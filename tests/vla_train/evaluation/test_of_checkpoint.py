"""`python -m vla_train eval`: of runs, of their checkpoints, of published checkpoints; interrupted, resumed, extended."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import save_small_checkpoint, small_config

from vla_train.cli import main
from vla_train.config import EnvConfig, EvalConfig, EvaluateConfig, PolicyConfig, RolloutConfig, TrainConfig
from vla_train.errors import DamagedFileError
from vla_train.evaluation import of_checkpoint
from vla_train.evaluation.evaluate import read_episodes
from vla_train.evaluation.of_checkpoint import CheckpointEvaluation
from vla_train.loop import iterate, set_up, train
from vla_train.pipeline.episodes import evaluation_episodes
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.types import Observation


@pytest.fixture(scope="module")
def run(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A complete run, evaluated at its end."""
    output = tmp_path_factory.mktemp("evaluated") / "run"
    config = small_config(small_checkpoint, output, iterations=2, eval={"every": 2, "episodes_per_task": 5})
    train(config)
    return config


@pytest.fixture
def evaluation(small_checkpoint: Path, tmp_path: Path) -> Callable[..., EvaluateConfig]:
    """Configs of evaluations of the published-layout folder, on few episodes."""

    def make(**changes: Any) -> EvaluateConfig:
        sections: dict[str, Any] = {
            "env": EnvConfig(id="reach_env:Reach-v0", num_workers=1, envs_per_worker=2, success="terminated"),
            "policy": PolicyConfig(chunk_size=2, device="cpu"),
            "rollout": RolloutConfig(),
            "eval": EvalConfig(episodes_per_task=4, videos=1),
        }
        for name, section in sections.items():
            sections[name] = dataclasses.replace(section, **changes.pop(name, {}))
        defaults = {"checkpoint": str(small_checkpoint), "output": tmp_path / "results", "display": "none"}
        return EvaluateConfig(**{**defaults, **sections, **changes})

    return make


def episode_seeds(folder: Path) -> list[int]:
    return [episode.seed for episode in read_episodes(folder / "episodes.jsonl")]


@pytest.mark.parametrize("named", [".", "checkpoints/step_000002", "checkpoints/step_000002/policy"])
def test_a_run_a_checkpoint_of_it_and_its_policy_give_the_runs_own_evaluation(
    named: str, run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["eval", "--checkpoint", str(run.output / named), "--output", str(tmp_path / "results")])
    (record,) = [
        record
        for record in map(json.loads, (run.output / "metrics.jsonl").read_text().splitlines())
        if record["kind"] == "eval"
    ]
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results.pop("played")["initial_states"] == "drawn"
    assert results == {name: record[name] for name in results}
    assert results["episodes"] == 5
    own = read_episodes(run.output / "evaluations" / "iteration_000002" / "episodes.jsonl")
    again = read_episodes(tmp_path / "results" / "episodes.jsonl")
    assert {(e.seed, e.success, e.length) for e in own} == {(e.seed, e.success, e.length) for e in again}
    assert "go to the right" in capsys.readouterr().out


@pytest.mark.parametrize("base_dtype", ["auto", "fp8"])
def test_an_evaluation_of_adapters_plays_the_policy_that_was_trained(
    base_dtype: str, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        small_checkpoint, tmp_path / "run", iterations=1, policy={"lora_rank": 2, "base_dtype": base_dtype}, eval={"every": 0}
    )
    trained = set_up(config)
    iterate(trained)
    policies: list[Any] = []
    rollout = of_checkpoint.Rollout
    monkeypatch.setattr(
        of_checkpoint, "Rollout", lambda *args, policy, **kw: policies.append(policy) or rollout(*args, policy=policy, **kw)
    )
    main(["eval", "--checkpoint", str(config.output), "--eval.episodes-per-task", "1", "--display", "none"])
    policies.append(trained.trainer._policy)
    observation = Observation(arrays={"image": np.zeros((2, 32, 32, 3), np.uint8)}, instructions=("go", "stay"))
    played, expected = (policy.act(observation, uniforms=None, temperature=1.0).decision["logprobs"] for policy in policies)
    if base_dtype == "fp8":
        assert np.array_equal(played, expected)
    np.testing.assert_allclose(played, expected, atol=1e-5)


def test_results_of_a_run_go_into_the_run_by_checkpoint(run: TrainConfig) -> None:
    main(["eval", "--checkpoint", str(run.output), "--eval.episodes-per-task", "1", "--display", "none"])
    folder = run.output / "evaluations" / "step_000002"
    assert {"episodes.jsonl", "evaluation.json", "results.json", "videos"} <= {path.name for path in folder.iterdir()}
    train(run)  # and do not disturb it when it goes on
    assert folder.exists()


def test_a_published_checkpoint_is_evaluated_beside_itself(small_checkpoint: Path, tmp_path: Path, evaluation) -> None:
    checkpoint = shutil.copytree(small_checkpoint, tmp_path / "published")
    before = sorted(path.name for path in checkpoint.iterdir())
    (result,) = CheckpointEvaluation(evaluation(checkpoint=str(checkpoint), output=None)).play()
    results = json.loads((tmp_path / "published-evaluation" / "results.json").read_text())
    assert results["episodes"] == len(result.episodes) == 4
    low, high = results["interval_low"], results["interval_high"]
    assert 0 <= low <= results["success_rate"] <= high <= 1
    assert high - low > 0.3, "four episodes leave much open"
    assert [task["task_id"] for task in results["tasks"]] == [0]
    assert sorted(path.name for path in checkpoint.iterdir()) == before


def test_an_interrupted_evaluation_plays_what_is_missing_and_nothing_twice(evaluation, tmp_path: Path) -> None:
    settings = EvalConfig(episodes_per_task=8)
    seeds = [spec.seed for spec in evaluation_episodes([0], {}, settings, temperature=0.0, train_fraction=0.8, split_seed=0)]
    kwargs = {"fault": "terminate", "fault_seed": str(seeds[4]), "marker": str(tmp_path / "happened")}
    config = evaluation(env={"kwargs": kwargs}, eval={"episodes_per_task": 8})
    with pytest.raises(SystemExit) as stop:
        CheckpointEvaluation(config).play()
    assert stop.value.code == 130
    first = episode_seeds(tmp_path / "results")
    assert 1 <= len(first) < 8
    assert not (tmp_path / "results" / "results.json").exists()
    (result,) = CheckpointEvaluation(config).play()
    assert episode_seeds(tmp_path / "results")[: len(first)] == first
    assert Counter(episode_seeds(tmp_path / "results")) == dict.fromkeys(seeds, 1)
    assert json.loads((tmp_path / "results" / "results.json").read_text())["episodes"] == len(result.episodes) == 8


def test_two_processes_cannot_evaluate_into_one_folder(evaluation, tmp_path: Path) -> None:
    first = CheckpointEvaluation(evaluation())
    with pytest.raises(ValueError, match=r"another process evaluates in .*results: wait until it has ended"):
        CheckpointEvaluation(evaluation())
    first.play()
    assert len(CheckpointEvaluation(evaluation()).play()[0].episodes) == 4


def test_more_episodes_can_be_added_with_envs_arranged_otherwise(evaluation, tmp_path: Path) -> None:
    CheckpointEvaluation(evaluation()).play()
    first = (tmp_path / "results" / "episodes.jsonl").read_text()
    more = evaluation(eval={"episodes_per_task": 6}, env={"num_workers": 2, "envs_per_worker": 1}, display="plain")
    assert len(CheckpointEvaluation(more).play()[0].episodes) == 6
    assert (tmp_path / "results" / "episodes.jsonl").read_text().startswith(first)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"env": {"kwargs": {"fault": "none"}}}, "other env"),
        ({"env": {"success": "return"}}, "other env"),
        ({"policy": {"jpeg": "on"}}, "other policy"),
        ({"seed": 1}, "other seed"),
        ({"train_fraction": 0.5}, "other train_fraction"),
    ],
    ids=str,
)
def test_results_of_different_evaluations_are_never_mixed(
    changes: dict[str, Any], named: str, evaluation, tmp_path: Path
) -> None:
    CheckpointEvaluation(evaluation(eval={"episodes_per_task": 1})).play()
    before = {path: path.read_bytes() for path in (tmp_path / "results").iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=rf"{named}.*choose another --output"):
        CheckpointEvaluation(evaluation(**changes))
    assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("damage", ["", "[]", '{"checkp'])
def test_results_of_nobody_knows_whom_are_not_taken_for_these(damage: str, evaluation, tmp_path: Path) -> None:
    config = evaluation(eval={"episodes_per_task": 1})
    CheckpointEvaluation(config).play()
    (tmp_path / "results/evaluation.json").write_text(damage)
    with pytest.raises(ValueError, match=r"evaluation.json is damaged, and nothing else says whose results these are"):
        CheckpointEvaluation(config)
    (tmp_path / "results/episodes.jsonl").unlink()
    CheckpointEvaluation(config).play()


@pytest.mark.parametrize("damage", [b"{}\n", b"\0\0\n", b"\xff\n"])
def test_a_damaged_journal_is_named_before_anything_is_played(damage: bytes, evaluation, tmp_path: Path) -> None:
    CheckpointEvaluation(evaluation(eval={"episodes_per_task": 1})).play()
    with open(tmp_path / "results/episodes.jsonl", "ab") as journal:
        journal.write(damage)
    with pytest.raises(DamagedFileError, match=r"episodes.jsonl, line \d+: not the result of an episode"):
        CheckpointEvaluation(evaluation(eval={"episodes_per_task": 2}))


def test_results_of_other_weights_in_the_same_folder_are_never_mixed(evaluation, tmp_path: Path) -> None:
    config = evaluation(checkpoint=str(save_small_checkpoint(tmp_path / "mine", seed=1)))
    CheckpointEvaluation(config).play()
    save_small_checkpoint(tmp_path / "mine", seed=2)
    with pytest.raises(ValueError, match="other weights"):
        CheckpointEvaluation(config)


def test_a_damaged_checkpoint_is_refused(run: TrainConfig, tmp_path: Path) -> None:
    copied = shutil.copytree(run.output, tmp_path / "run")
    weights = copied / "checkpoints" / "step_000002" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"step_000002 is damaged.*policy/model\.safetensors"):
        CheckpointEvaluation(EvaluateConfig(checkpoint=str(weights.parent), env=run.env))


def test_an_evaluation_makes_batches_as_it_is_told(evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    act = SimpleVLAOFTPolicy.act

    def noted(policy: SimpleVLAOFTPolicy, observation: Observation, **options: Any) -> Any:
        sizes.append(len(observation))
        return act(policy, observation, **options)

    monkeypatch.setattr(SimpleVLAOFTPolicy, "act", noted)
    CheckpointEvaluation(evaluation(rollout={"max_policy_batch": 1})).play()
    assert set(sizes) == {1}


def test_results_that_cannot_be_written_are_an_error_before_anything_is_played(evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        CheckpointEvaluation(evaluation(output=tmp_path / "file" / "results"))
