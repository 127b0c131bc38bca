"""One command from nothing to a policy that GRPO made better, ended before each of its stages and begun again."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from corners_env import StoredCornersVectorEnv
from corners_policy import save_untrained

from vla_train import report
from vla_train.cli import main
from vla_train.command_line import parse_bench, parse_from_scratch
from vla_train.config_json import config_from_json, config_to_json
from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.from_scratch.config import STAGES as NAMES
from vla_train.from_scratch.config import FromScratchConfig
from vla_train.from_scratch.progress import Progress
from vla_train.from_scratch.result import grpo_seconds
from vla_train.from_scratch.stages import FromScratch
from vla_train.pipeline.episodes import split_initial_states
from vla_train.recipes.gpu_from_scratch import gpu_from_scratch
from vla_train.run import lock
from vla_train.run.lock import lock_run
from vla_train.run.tracking import read_records

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = ["--recipe", "gpu-from-scratch"]
SPLIT = {"train_fraction": 0.5, "split_seed": 1}
STAGES = ["_collect", "_teach", "_train", "_evaluate"]


@dataclass(frozen=True)
class Done:
    """The command, done in four processes, as it were."""

    options: list[str]
    output: Path
    begun: list[list[str]]
    """Stages that each of them worked on."""
    seconds: list[dict[str, float]]
    """What the stages had taken when it ended."""
    started: dict[str, set[tuple[int, int]]]
    """Task and initial state of the episodes of each stage."""

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.output / "result.json").read_text())


def options(output: Path, checkpoint: Path) -> list[str]:
    return [
        *("train", *RECIPE, "--output", str(output), "--display", "none", "--demonstrations-per-task", "8"),
        *("--train-fraction", str(SPLIT["train_fraction"]), "--split-seed", str(SPLIT["split_seed"])),
        *("--env.id", "corners_env:StoredCorners-v0", "--env.success", "terminated", "--env.max-episode-steps", "6"),
        *("--env.worker", "thread", "--env.num-workers", "2", "--env.envs-per-worker", "16"),
        *("--policy.checkpoint", str(checkpoint), "--policy.chunk-size", "2"),
        *("--policy.device", "cpu", "--policy.dtype", "float32", "--policy.no-compile", "--collect.workers", "1"),
        *("--sft.steps", "50", "--sft.batch-rows", "16", "--sft.label-step", "0", "--sft.optim.warmup-steps", "1"),
        *("--sft.optim.microbatch-rows", "16", "--sft.trackers", "--train.iterations", "8", "--train.trackers"),
        *("--train.rollout.groups-per-iteration", "8", "--train.rollout.deterministic"),
        *("--train.rollout.temperature", "1", "--train.rollout.final-temperature", "1"),
        *("--train.optim.minibatch-trajectories", "32", "--train.optim.microbatch-rows", "64"),
        *("--train.optim.learning-rate", "6e-4", "--train.optim.warmup-steps", "0"),
        # Of states that are trained on: then whatever GRPO plays has to be one.
        *("--train.eval.initial-states", "train", "--train.eval.every", "8", "--train.eval.videos", "0"),
        *("--evaluation.temperatures", "0", "1", "--evaluation.episodes-per-task", "20", "--evaluation.videos", "0"),
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Done:
    folder = tmp_path_factory.mktemp("from_scratch")
    save_untrained(folder / "checkpoint", seed=0)
    done = Done(options(folder / "run", folder / "checkpoint"), folder / "run", [], [], {})
    for stopped in (*STAGES[1:], None):
        done.begun.append([])
        with pytest.MonkeyPatch.context() as patch:
            for name in STAGES:
                patch.setattr(FromScratch, name, watched(name, done, stopped=name == stopped))
            if stopped is None:
                main(done.options)
            else:
                with pytest.raises(SystemExit, match="130"):
                    main(done.options)
        stages = json.loads((done.output / "stages.json").read_text())
        done.seconds.append({name: stage["seconds"] for name, stage in stages.items()})
    return done


def watched(name: str, done: Done, *, stopped: bool) -> Any:
    """A stage that is interrupted when it begins, or that tells where its episodes began."""
    work = getattr(FromScratch, name)

    def stage(self: FromScratch) -> None:
        done.begun[-1].append(name)
        if stopped:
            raise KeyboardInterrupt
        StoredCornersVectorEnv.started.clear()
        work(self)
        done.started[name] = set(StoredCornersVectorEnv.started)

    return stage


def states(side: int) -> set[tuple[int, int]]:
    """Task and initial state of all that is trained on (0) or held out (1)."""
    env = StoredCornersVectorEnv
    return {(task, int(state)) for task in env.task_ids for state in split_initial_states(task, env.num_states, **SPLIT)[side]}


def test_grpo_makes_a_policy_better_that_demonstrations_left_poor(done: Done) -> None:
    start, final = (done.result["success"][name]["sampled at T = 1"] for name in ("start", "final"))
    assert 0.3 < start["success_rate"] < 0.75
    assert final["success_rate"] > start["success_rate"] + 0.1
    assert [(task["task_id"], task["episodes"]) for task in final["tasks"]] == [(0, 20), (1, 20)]
    assert final["interval_low"] < final["success_rate"] < final["interval_high"]
    assert done.result["work"]["demonstrations"] == 16
    assert done.result["work"]["grpo_iterations"] == 8
    assert (done.output / "grpo" / "report.html").exists()


def test_held_out_states_are_never_demonstrated_nor_trained_on_and_all_are_evaluated(done: Done) -> None:
    episodes = DemonstrationDataset(done.output / "demonstrations").episodes
    assert {(episode.task_id, episode.init_state_id) for episode in episodes} == states(0)
    assert done.started["_collect"] | done.started["_teach"] <= states(0)
    assert done.started["_train"] == states(0)
    assert done.started["_evaluate"] == states(1)
    assert done.result["success"]["start"]["greedy"]["episodes"] == len(states(1))


def test_a_stage_that_is_done_is_not_done_again_and_its_time_is_kept(done: Done) -> None:
    assert done.begun == [STAGES[:2], STAGES[1:3], STAGES[2:], STAGES[3:]]
    first, *_, last = done.seconds
    assert first["collect"] == last["collect"] > 0
    assert last["sft"] > first["sft"] > 0
    seconds = done.result["seconds"]
    assert seconds == {**last, "all": pytest.approx(sum(last.values()))}
    assert sum(done.result["grpo_seconds"].values()) == pytest.approx(last["train"])


def test_the_wall_clock_of_an_iteration_is_split_without_a_rest(done: Done) -> None:
    for record in read_records(done.output / "grpo", "iteration"):
        parts = [record[f"time/{activity}_s"] for activity in ("simulate", "draw", "policy", "train", "idle")]
        assert sum(parts) == pytest.approx(record["time/iteration_s"])
        assert min(parts[0], parts[2], parts[3]) > 0


def test_a_result_is_read_again_where_nothing_is_left_to_do(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    before = done.result
    for name in STAGES:
        monkeypatch.setattr(FromScratch, name, None)
    monkeypatch.setattr(report, "write_report", lambda run: run)
    main(done.options)
    assert done.result == before


def test_another_start_of_the_same_grpo_is_refused(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*done.options, "--sft.stride", "2"])
    assert "holds GRPO from a start with sft.stride 1, not 2: choose another output" in capsys.readouterr().err


def test_grpo_may_be_told_something_else_and_is_then_gone_on_with(done: Done) -> None:
    given = [*done.options[1:], "--train.rollout.max-staleness", "1", "--train.rollout.max-wait-s", "0.1"]
    progress = Progress(parse_from_scratch(given))
    assert [name for name in NAMES if progress.is_done(name)] == ["collect", "sft", "evaluation"]


def test_the_config_in_the_result_is_the_one_that_was_asked_for(done: Done) -> None:
    config = parse_from_scratch(done.options[1:])
    assert config_from_json(done.result["config"], defaults=gpu_from_scratch()) == config


def test_a_file_may_hold_all_that_the_recipe_says(tmp_path: Path) -> None:
    recipe, file = gpu_from_scratch(), tmp_path / "config.json"
    file.write_text(json.dumps({**config_to_json(recipe), "seed": 4}))
    assert recipe.collect.workers == "auto"
    assert parse_from_scratch([*RECIPE, "--config", str(file)]) == replace(recipe, seed=4)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--sft.train-fraction", "0.5"], "Unrecognized options: --sft.train-fraction"),
        (["--env.kwargs", "suite=libero_10"], "collect: suite was given twice"),
        (["--train-fraction", "1"], "success is measured on held-out states"),
        (["--sft.steps", "0"], "sft: steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_work_or_would_let_stages_disagree_is_refused(
    given: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_from_scratch([*RECIPE, *given])
    assert reason in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_stages_agree_about_what_is_said_once() -> None:
    config = parse_from_scratch([*RECIPE, "--seed", "5", "--task-ids", "1", "3", "--split-seed", "2", "--policy.size", "tiny"])
    stages = (config.collecting, config.teaching, config.training, config.evaluating(Path("checkpoint")))
    assert {(stage.seed, stage.split_seed, stage.train_fraction) for stage in stages} == {(5, 2, 0.8)}
    env = {"sleep": "true", "suite": "libero_object", "task_ids": "[1, 3]", "image_size": "128", "detail": "fast"}
    assert [config.collecting.played_env.kwargs, *(stage.env.kwargs for stage in stages[1:])] == [env] * 4
    assert parse_from_scratch([*RECIPE, "--env.id", "Other-v0"]).collecting.played_env.kwargs == {}
    assert (config.teaching.policy.size, config.training.policy.checkpoint) == ("tiny", str(config.output / "start"))


def test_bench_does_not_take_several_commands_in_one() -> None:
    with pytest.raises(ValueError, match="only train takes it"):
        parse_bench(RECIPE)


def test_the_seconds_of_grpo_are_those_of_its_log_and_a_rest() -> None:
    records = [
        {"kind": "eval", "duration_s": 4.0},
        {"kind": "iteration", "time/simulate_s": 2.0, "time/policy_s": 1.0},
        {"kind": "iteration", "time/simulate_s": 3.0, "time/idle_s": 0.5},
    ]
    parts = grpo_seconds(records, 20.0)
    assert parts == {"simulate": 5.0, "draw": 0, "policy": 1.0, "train": 0, "idle": 0.5, "evaluations": 4.0, "other": 9.5}


def changed(given: list[str], name: str, value: str) -> FromScratchConfig:
    """What these options say with another value of one of them."""
    if name not in given:
        return parse_from_scratch([*given, name, value])
    place = given.index(name)
    return parse_from_scratch([*given[:place], name, value, *given[place + 2 :]])


def begun(tmp_path: Path, *, checkpoint_of: str) -> tuple[list[str], Path]:
    """Options, and their output folder, where collecting and supervised training have begun."""
    output = tmp_path / "run"
    given = options(output, tmp_path / "checkpoint")[1:]
    (output / checkpoint_of / "checkpoints" / "step_000010").mkdir(parents=True)
    progress = Progress(parse_from_scratch(given))
    for name in ("collect", "sft"):
        with progress.working(name):
            pass
    return given, output


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--sft.optim.learning-rate", "0.25"], "holds a start with sft.optim.learning_rate .*, not 0.25"),
        (["--demonstrations-per-task", "9"], "holds a start with collect.episodes_per_task 8, not 9"),
        (["--sft.steps", "49"], "holds a start with sft.steps 50, not 49"),
    ],
)
def test_a_start_that_has_begun_is_not_gone_on_with_as_another(change: list[str], reason: str, tmp_path: Path) -> None:
    given, _ = begun(tmp_path, checkpoint_of="start")
    with pytest.raises(ValueError, match=reason):
        Progress(changed(given, *change))
    assert not Progress(changed(given, "--sft.steps", "60")).is_done("sft")


def test_what_left_no_checkpoint_is_begun_again_with_whatever_is_asked(tmp_path: Path) -> None:
    given, output = begun(tmp_path, checkpoint_of="start")
    progress = Progress(parse_from_scratch(given))
    with progress.working("train"):  # as far as its set-up, which refused something
        pass
    assert Progress(changed(given, "--sft.steps", "60")).is_done("collect")
    (output / "start" / "checkpoints" / "step_000010").rmdir()
    Progress(changed(given, "--sft.stride", "2"))
    (output / "grpo" / "checkpoints" / "step_000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds GRPO from a start with sft.steps 50, not 60"):
        Progress(changed(given, "--sft.steps", "60"))


def test_a_checkpoint_may_be_spelt_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    given, _ = begun(tmp_path, checkpoint_of="start")
    monkeypatch.chdir(tmp_path)
    assert Progress(changed(given, "--policy.checkpoint", "checkpoint")).is_done("sft")


def test_several_processes_are_refused(done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        main(done.options)
    assert "this recipe runs in one process, and was started in 2" in capsys.readouterr().err


def test_who_loses_the_race_for_a_folder_leaves_it_to_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, held = tmp_path / "run", []

    def be_second(run: Path, *, activity: str) -> Callable[[], None]:
        held.append(lock_run(run, activity=activity))
        return lock_run(run, activity=activity)

    monkeypatch.setattr(lock, "lock_run", be_second)
    with pytest.raises(ValueError, match="another process works in"):
        FromScratch(parse_from_scratch(options(output, tmp_path / "checkpoint")[1:]))
    assert output.is_dir()
    held[0]()
