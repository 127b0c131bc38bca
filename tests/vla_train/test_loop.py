"""A run from the command line: trains, evaluates, saves, shows; on envs that are not ours too, without new code."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from small_runs import command_line, save_small_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vla_train.cli import main
from vla_train.config import TrainConfig
from vla_train.loop import train
from vla_train.run.tracking import read_records

MakeRun = Callable[..., TrainConfig]


def curve(run: Path, name: str) -> list[int]:
    """Iterations at which a TensorBoard curve has a point."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [point.step for point in events.Scalars(name)]


def only(paths) -> Path:
    (path,) = paths
    return path


def test_a_run_leaves_config_curves_checkpoints_timeline_and_videos(small_run: MakeRun) -> None:
    config = small_run(iterations=3, checkpoint_every=2, eval={"every": 2, "episodes_per_task": 3})
    main(["train", *command_line(config)])
    run = config.output
    assert json.loads((run / "config.json").read_text())["env"]["id"] == "reach_env:Reach-v0"
    assert [record["iteration"] for record in read_records(run, "iteration")] == [1, 2, 3]
    assert [record["iteration"] for record in read_records(run, "eval")] == [2, 3]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000002", "step_000003"]
    assert curve(run, "update/loss") == [1, 2, 3]
    assert curve(run, "eval/success_rate") == [2, 3]
    assert iio.imread(run / "timeline" / "iteration_000003.png").ndim == 3
    assert (run / "timeline" / "iteration_000003.json.gz").stat().st_size > 100
    for iteration in (2, 3):
        folder = run / "evaluations" / f"iteration_{iteration:06d}"
        assert len((folder / "episodes.jsonl").read_text().splitlines()) == 3
        videos = list((folder / "videos").iterdir())
        assert 1 <= len(videos) <= 2
        assert iio.imread(videos[0]).shape[1:] == (28, 28, 3)


def test_a_resumed_run_draws_each_point_of_its_curves_once(small_run: MakeRun) -> None:
    train(small_run(iterations=2))
    train(small_run(iterations=3))
    assert curve(small_run().output, "update/loss") == [1, 2, 3]


def test_the_display_says_what_is_done_how_fast_and_where_results_are(
    small_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(iterations=1, display="plain", eval={"every": 1, "episodes_per_task": 2})
    train(config)
    shown = capsys.readouterr().out
    assert "starting 2 workers of 2 reach_env:Reach-v0 envs" in shown
    assert "1 tasks, policy of 125 k weights on cpu, reads image 28x28x3" in shown
    assert "iteration 1/1" in shown
    assert "chunks/s" in shown
    assert "go to the right" in shown
    assert f"{config.output}/checkpoints/step_000001" in shown
    assert f"report {config.output}" in shown
    assert "nothing was learnt" not in shown


def test_a_folder_whose_name_looks_like_markup_is_a_folder_like_any_other(
    small_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(small_run(iterations=1, display="plain"), output=tmp_path / "a[" / "b]")
    train(config)
    assert f"done: {config.output}" in capsys.readouterr().out


def test_an_iteration_without_signal_says_so_and_leaves_the_weights_alone(
    small_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(iterations=1, display="plain", env={"success": "return", "success_return": 100.0})
    train(config)
    shown = capsys.readouterr().out
    assert "no group with signal" in shown
    assert "nothing was learnt" in shown
    record = only(read_records(config.output, "iteration"))
    assert (record["rollout/groups_kept"], record["rollout/groups_rejected"], record["update/updates"]) == (0, 2, 0)
    assert {name for name in record if name.startswith("update/")} == {"update/updates"}, "nothing else was measured"
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    assert not [name for name in events.Tags()["scalars"] if name.startswith("update/")]
    assert "rollout/success_rate" in events.Tags()["scalars"]
    before = Path(config.policy.checkpoint) / "model.safetensors"
    after = config.output / "checkpoints" / "step_000001" / "policy" / "model.safetensors"
    assert tensors(before).keys() == tensors(after).keys()
    for name, tensor in tensors(before).items():
        np.testing.assert_array_equal(tensor, tensors(after)[name])


def tensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(file)


def test_weights_change_where_there_is_a_signal(small_run: MakeRun) -> None:
    config = small_run(iterations=1)
    train(config)
    assert only(read_records(config.output, "iteration"))["update/updates"] > 0
    before = tensors(Path(config.policy.checkpoint) / "model.safetensors")
    after = tensors(config.output / "checkpoints" / "step_000001" / "policy" / "model.safetensors")
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_an_evaluation_plays_the_weights_that_the_checkpoint_holds_also_when_the_rollout_overlaps_the_update(
    small_run: MakeRun, tmp_path: Path
) -> None:
    config = small_run(
        rollout={"max_staleness": 1},
        optim={"learning_rate": 0.05},
        eval={"every": 2, "episodes_per_task": 6, "videos": 0},
        keep_checkpoints=4,
    )
    train(config)
    main(["eval", "--checkpoint", f"{config.output}/checkpoints/step_000002", "--output", f"{tmp_path}/again"])
    own, again = (
        {line["seed"]: (line["success"], line["episode_return"], line["length"]) for line in map(json.loads, text.splitlines())}
        for text in (
            (config.output / "evaluations" / "iteration_000002" / "episodes.jsonl").read_text(),
            (tmp_path / "again" / "episodes.jsonl").read_text(),
        )
    )
    assert own == again


# --- envs that are not ours


def assert_trained(run: Path, *, iterations: int) -> None:
    records = read_records(run, "iteration")
    assert [record["iteration"] for record in records] == list(range(1, iterations + 1))
    assert all(record["rollout/episodes"] > 0 for record in records)
    assert (run / "checkpoints" / f"step_{iterations:06d}" / "policy" / "config.json").exists()
    assert curve(run, "rollout/success_rate") == list(range(1, iterations + 1))
    assert list((run / "evaluations" / f"iteration_{iterations:06d}" / "videos").glob("*.mp4"))


SMALL_NUMBERS = [
    *("--policy.chunk-size", "2", "--env.envs-per-worker", "2", "--rollout.group-size", "2", "--optim.microbatch-rows", "8"),
    *("--eval.every", "1", "--eval.episodes-per-task", "2", "--eval.videos", "1", "--display", "none"),
]


def test_an_env_with_gymnasiums_render_wrapper_and_a_constant_instruction_is_trained_from_the_command_line(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    options = [
        *(
            "--env.id",
            "reach_env:ReachPixels-v0",
            "--env.image-key",
            "camera",
            "--env.success",
            "terminated",
            "--env.instruction",
            "go to the right",
        ),
        *("--policy.checkpoint", str(small_checkpoint), "--output", str(tmp_path / "run"), *SMALL_NUMBERS),
    ]
    main(["train", *options, "--iterations", "1"])
    assert_trained(tmp_path / "run", iterations=1)
    main(["train", *options, "--iterations", "2"])
    assert_trained(tmp_path / "run", iterations=2)
    main(["eval", "--checkpoint", str(tmp_path / "run"), "--display", "none"])
    assert json.loads((tmp_path / "run" / "evaluations" / "step_000002" / "results.json").read_text())["episodes"] == 2


def test_an_env_of_gymnasium_is_trained_on_its_own_rendering_from_the_command_line(tmp_path: Path) -> None:
    checkpoint = save_small_checkpoint(tmp_path / "checkpoint", action_dim=1, bound=3.0)
    main(
        [
            *("train", "--env.id", "InvertedPendulum-v5", "--env.kwargs", "width=64", "height=64"),
            *("--env.image-key", "render", "--env.instruction", "balance the pole", "--env.max-episode-steps", "20"),
            *("--env.success", "return", "--env.success-return", "8", "--rollout.groups-per-iteration", "1"),
            *("--policy.checkpoint", str(checkpoint), "--output", str(tmp_path / "run"), *SMALL_NUMBERS, "--iterations", "1"),
        ]
    )
    assert_trained(tmp_path / "run", iterations=1)
    video = next((tmp_path / "run" / "evaluations" / "iteration_000001" / "videos").glob("*.mp4"))
    assert np.ptp(iio.imread(video)) > 50, "a picture of something"


@pytest.mark.slow
def test_the_default_recipe_cut_short_trains_on_libero_and_its_checkpoint_is_evaluated_per_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(
        [
            *("--output", str(run), "--iterations", "1", "--env.envs-per-worker", "2", "--env.max-episode-steps", "16"),
            *("--rollout.groups-per-iteration", "1", "--rollout.group-size", "2", "--eval.every", "1"),
            *("--eval.episodes-per-task", "1", "--display", "plain"),
        ]
    )
    shown = capsys.readouterr().out
    assert_trained(run, iterations=1)
    assert (run / "timeline" / "iteration_000001.png").exists()
    assert "no group with signal" in shown
    assert shown.count("close the microwave") == 4  # greedy and sampled, before and after
    main(["eval", "--checkpoint", str(run), "--eval.episodes-per-task", "2", "--display", "plain"])
    results = json.loads((run / "evaluations" / "step_000001" / "results.json").read_text())
    assert [(task["task_id"], task["episodes"]) for task in results["tasks"]] == [(33, 2)]
    assert all(len(task["interval"]) == 2 for task in results["tasks"])
    assert "95 % interval" in capsys.readouterr().out
