"""Collecting demonstrations from an env that brings its expert."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import small_demonstrations as small
from targets_env import MAX_EPISODE_STEPS, NUM_STATES, TargetsVectorEnv

from vla_train.cli import main
from vla_train.config import EnvConfig
from vla_train.demonstrations.collect import Collection
from vla_train.demonstrations.config import CollectConfig
from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.demonstrations.player import Player
from vla_train.demonstrations.writer import DatasetWriter
from vla_train.errors import RunError
from vla_train.pipeline.episodes import split_initial_states

ENV = EnvConfig(id="targets_env:Targets-v0")


def config(output: Path, **changes: Any) -> CollectConfig:
    defaults: dict[str, Any] = {"episodes_per_task": 4, "workers": 1, "display": "none", "env": ENV}
    return CollectConfig(output=output, **{**defaults, **changes})


def collect(output: Path, **changes: Any) -> DemonstrationDataset:
    Collection(config(output, **changes)).collect()
    return DemonstrationDataset(output)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("collected") / "dataset"
    collect(output)
    return output


def replayed(dataset: DemonstrationDataset, episode: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Frames and states that the env shows on the way, when the recorded actions are played; whether they succeed."""
    env = gym.make_vec("targets_env:Targets-v0", num_envs=1, vectorization_mode="vector_entry_point")
    what = dataset.episodes[episode]
    observation, _ = env.reset(options={"task_id": what.task_id, "init_state_id": what.init_state_id})
    frames, states = [], []
    for action in dataset.actions(episode).astype(np.float64):
        frames.append(observation["image"][0])
        states.append(observation["state"][0])
        observation, _, terminated, _, _ = env.step(action[None])
    return np.array(frames), np.array(states), bool(terminated[0])


def test_every_demonstration_is_what_the_env_shows_while_its_actions_are_played(tmp_path: Path):
    dataset = collect(tmp_path / "dataset", noise=0.0)
    assert [episode.task for episode in dataset.episodes] == ["go left"] * 4 + ["go right"] * 4
    for episode in dataset.episodes:
        frames, states, succeeded = replayed(dataset, episode.index)
        assert succeeded
        assert episode.success
        np.testing.assert_array_equal(dataset.images(episode.index, "image", range(episode.length)), frames)
        np.testing.assert_array_equal(dataset.states(episode.index), states)


def test_start_states_belong_to_training(collected: Path):
    for episode in DemonstrationDataset(collected).episodes:
        assert episode.task_id is not None
        train, _ = split_initial_states(episode.task_id, NUM_STATES, train_fraction=0.8, split_seed=0)
        assert episode.init_state_id in train


def test_several_processes_write_the_bytes_that_one_writes(collected: Path, tmp_path: Path):
    collect(tmp_path / "dataset", workers=2)
    assert small.contents(tmp_path / "dataset") == small.contents(collected)


@pytest.mark.parametrize("num_episodes", [0, 1, 5, 7])
def test_a_run_that_ended_early_goes_on_to_the_bytes_of_an_unbroken_one(
    num_episodes: int, collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    append = DatasetWriter.append

    def append_some(writer: DatasetWriter, demonstration: Any) -> None:
        if len(writer.origins) == num_episodes:
            raise KeyboardInterrupt
        append(writer, demonstration)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "append", append_some)
        with pytest.raises(SystemExit) as ended:
            collect(tmp_path / "dataset")
    assert ended.value.code == 130
    collect(tmp_path / "dataset")
    assert small.contents(tmp_path / "dataset") == small.contents(collected)


def test_a_complete_dataset_is_left_as_it_is(collected: Path):
    before = small.contents(collected)
    collect(collected)
    assert small.contents(collected) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_leaves_no_process_behind_and_goes_on(number: int, collected: Path, tmp_path: Path):
    output = tmp_path / "dataset"
    program = (
        "import sys, time; sys.path[:0] = sys.argv[2:]; import targets_env\n"
        "from pathlib import Path; from test_collect import config; from vla_train.demonstrations.collect import Collection\n"
        "from vla_train.demonstrations.writer import DatasetWriter\n"
        "append = DatasetWriter.append\n"
        "DatasetWriter.append = lambda *given: (append(*given), print('written', flush=True), time.sleep(0.5))\n"
        "if __name__ == '__main__': Collection(config(Path(sys.argv[1]), workers=2)).collect()\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    folders = [str(Path(__file__).parent)]
    with subprocess.Popen([sys.executable, str(script), str(output), *folders], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        process.wait(60)
    assert children
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 1 <= len(DemonstrationDataset(output).episodes) < 8
    collect(output)
    assert small.contents(output) == small.contents(collected)


def test_only_what_is_kept_is_drawn(tmp_path: Path):
    TargetsVectorEnv.num_drawn = 0
    dataset = collect(tmp_path / "dataset")
    attempts = max(origin["attempt"] for origin in rows_of(tmp_path / "dataset")) + 1
    assert attempts > 4  # some have failed
    assert TargetsVectorEnv.num_drawn == dataset.num_steps


def rows_of(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()


def test_failures_are_kept_where_asked_for_and_marked(tmp_path: Path):
    dataset = collect(tmp_path / "dataset", keep_failures=True)
    failures = [episode for episode in dataset.episodes if not episode.success]
    assert failures
    assert all(episode.length == MAX_EPISODE_STEPS for episode in failures)
    assert sum(bool(episode.success) for episode in dataset.episodes) == 8


def test_the_action_without_the_noise_is_recorded_where_the_noise_has_led(tmp_path: Path):
    dataset = collect(tmp_path / "dataset", noise=0.3)
    for episode in dataset.episodes:
        states, actions = dataset.states(episode.index), dataset.actions(episode.index)
        assert states is not None
        target = np.array([-1.0 if episode.task_id == 0 else 1.0, 0.0])
        np.testing.assert_allclose(actions, np.clip((target - states[:, :2]) / 0.3, -1, 1), atol=1e-5)
        assert episode.length == 1 or not np.allclose(np.diff(states[:, :2], axis=0), 0.3 * actions[:-1], atol=1e-3)


def test_the_wrist_camera_and_cameras_of_the_users_choice(tmp_path: Path):
    assert collect(tmp_path / "wrist", wrist_camera=True).image_keys == ("image", "wrist_image")
    on_the_way = replace(ENV, kwargs={"cameras": '["agentview"]'})
    one, other = collect(tmp_path / "apart"), collect(tmp_path / "on_the_way", env=on_the_way)
    for episode in one.episodes:
        steps = range(episode.length)
        np.testing.assert_array_equal(one.images(episode.index, "image", steps), other.images(episode.index, "image", steps))


def test_what_made_the_dataset_is_recorded(collected: Path):
    provenance = json.loads((collected / "meta/provenance.json").read_text())
    assert provenance["settings"]["noise"] == 0.05
    assert provenance["settings"]["env"]["id"] == "targets_env:Targets-v0"
    assert provenance["conventions"]["mirrored_images"] is True
    assert provenance["versions"]["gymnasium"] == gym.__version__
    dataset = DemonstrationDataset(collected)
    assert (dataset.suite, dataset.fps, dataset.mirrored_images) == ("targets", 20, True)
    assert dataset.actions_as_played


def test_a_task_that_the_expert_declines_is_refused_with_its_reason_before_anything_starts(tmp_path: Path):
    env = replace(ENV, kwargs={"task_ids": "[0, 2, 1]"})
    reason = r"declines 1 of 3 tasks \(task 2: cannot fly: it has no wings\): choose the others with --task-ids 0 1"
    with pytest.raises(ValueError, match=reason):
        collect(tmp_path / "dataset", env=env)
    assert not (tmp_path / "dataset").exists()


def test_an_env_without_an_expert_is_refused_and_a_users_own_expert_is_taken(tmp_path: Path):
    env = EnvConfig(id="corners_env:Corners-v0", success="terminated")
    with pytest.raises(ValueError, match=r"CornersVectorEnv brings no expert .*with --expert"):
        collect(tmp_path / "dataset", env=env)
    with pytest.raises(ValueError, match=r"expert 'targets_env:nobody': targets_env has no function 'nobody'"):
        collect(tmp_path / "dataset", expert="targets_env:nobody")
    with pytest.raises(RunError, match=r"given up after 3 attempts \(task 0: 0 of 1, task 1: 0 of 1\)"):
        collect(tmp_path / "dataset", expert="targets_env:lazy_expert", episodes_per_task=1)


def test_an_attempt_that_the_expert_gives_up_has_failed_and_the_log_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    dataset = collect(tmp_path / "dataset", expert="targets_env:timid_expert", episodes_per_task=3, max_attempts=9.0)
    assert sum(bool(episode.success) for episode in dataset.episodes) == 6
    assert "the expert gives up, which counts as a failure: it is high up here" in caplog.text
    for episode in dataset.episodes:
        states = dataset.states(episode.index)
        assert states is not None
        assert not ((states[1:, 1] > 0.2) & (states[1:, 1] < 0.4)).any()


def test_a_plain_env_is_refused_with_what_to_do(tmp_path: Path):
    env = EnvConfig(id="reach_env:Reach-v0", success="terminated")
    with pytest.raises(ValueError, match=r"no vector env, which demonstrations need: set env.kwargs vectorization_mode=sync"):
        collect(tmp_path / "dataset", env=env)


def test_an_env_that_is_not_deterministic_ends_the_collection(tmp_path: Path):
    with pytest.raises(RunError, match="played the same actions from the same start in two ways"):
        collect(tmp_path / "dataset", env=replace(ENV, kwargs={"wobbly": "true"}), max_attempts=50)


def test_other_settings_are_refused_before_anything_starts(collected: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Player, "__init__", lambda *given: pytest.fail("an env was made"))
    with pytest.raises(ValueError, match=r"holds demonstrations with settings.seed 0, not 1: choose another output"):
        collect(collected, seed=1)


def test_an_output_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/dataset cannot be written to: Not a directory; choose another output"):
        collect(tmp_path / "file/dataset")


def test_two_commands_do_not_write_into_one_folder(tmp_path: Path):
    first = Collection(config(tmp_path / "dataset"))
    with pytest.raises(ValueError, match="another process collects in"):
        Collection(config(tmp_path / "dataset"))
    first.collect()


def test_the_command_line_collects(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    arguments = ["--env.id", "targets_env:Targets-v0", "--task-ids", "1", "--episodes-per-task", "2", "--workers", "1"]
    main(["collect", *arguments, "--output", str(tmp_path / "dataset"), "--display", "plain"])
    said = capsys.readouterr().out
    assert "1 go right" in said
    assert "2 episodes" in said
    assert [episode.task_id for episode in DemonstrationDataset(tmp_path / "dataset").episodes] == [1, 1]
