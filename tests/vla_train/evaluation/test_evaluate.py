"""Evaluations count each episode once, whatever interrupts them, and keep videos that people can watch."""

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from played_episodes import make_specs, make_trajectory, play_with

from vla_train.evaluation.evaluate import (
    EpisodeResult,
    EvaluationResult,
    evaluate,
    identity,
    read_episodes,
    summary,
    wilson_interval,
    write_video,
)
from vla_train.types import EpisodeSpec, Trajectory


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
        (450, 500, 0.8706, 0.9234),
    ],
)
def test_wilson_intervals_are_the_published_ones(successes: int, episodes: int, low: float, high: float) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-4)


def test_nothing_played_says_nothing_about_the_rate() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert EvaluationResult(episodes=(), temperature=0.0).success_rate == 0.0


def test_rates_are_counted_in_all_and_per_task(tmp_path: Path) -> None:
    result = evaluate(
        make_specs(2, 4),
        play_with(lambda spec: spec.task_id == 0 or spec.init_state_id == 0),
        folder=tmp_path,
        videos=0,
        mirrored_images=False,
        temperature=0.0,
    )
    assert [(task.task_id, task.successes, task.episodes) for task in result.tasks] == [(0, 4, 4), (1, 1, 4)]
    assert result.success_rate == pytest.approx(5 / 8)
    data = json.loads(json.dumps(summary(result)))
    assert data["successes"] == 5
    assert (data["interval_low"], data["interval_high"]) == pytest.approx(wilson_interval(5, 8))
    assert data["tasks"][1]["interval"] == pytest.approx(wilson_interval(1, 4))


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    specs = make_specs(2, 3)
    played: list[EpisodeSpec] = []

    def play(episodes: Iterable[EpisodeSpec], *, fail_after: int) -> Iterator[Trajectory]:
        for count, spec in enumerate(episodes):
            if count == fail_after:
                raise RuntimeError("power cut")
            played.append(spec)
            yield make_trajectory(spec, success=spec.task_id == 0)

    arguments = {"folder": tmp_path, "videos": 1, "mirrored_images": False, "temperature": 0.0}
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate(specs, lambda episodes, **_: play(episodes, fail_after=4), **arguments)
    progress: list[tuple[int, int, int]] = []
    result = evaluate(
        specs,
        lambda episodes, **_: play(episodes, fail_after=99),
        on_episode=lambda *counts: progress.append(counts),
        **arguments,
    )
    assert played == specs
    assert progress == [(3, 5, 6), (3, 6, 6)], "successes of the first part count too"
    assert (len(result.episodes), result.successes) == (6, 3)
    assert evaluate(specs, lambda episodes, **_: play(episodes, fail_after=0), **arguments) == result
    assert len(list((tmp_path / "videos").iterdir())) == 2, "videos kept before the interruption count too"


def test_episodes_that_were_filmed_before_are_filmed_again(tmp_path: Path) -> None:
    specs = make_specs(1, 5)
    arguments = {"mirrored_images": False, "temperature": 0.0}
    before = evaluate(
        specs, play_with(lambda spec: spec.init_state_id == 3), folder=tmp_path / "before", videos=1, **arguments
    ).episodes
    filmed = {identity(episode, 0.0) for episode in before if episode.video is not None}
    assert {episode.init_state_id for episode in before if episode.video is not None} == {0, 3}
    after = evaluate(specs, play_with(lambda _: True), folder=tmp_path / "after", videos=1, filmed=filmed, **arguments).episodes
    assert [episode.video for episode in after] == [
        "task00_start0_success.mp4",
        None,
        None,
        "task00_start3_success.mp4",
        None,
    ]


def test_an_episode_whose_line_was_cut_short_is_played_again(tmp_path: Path) -> None:
    specs = make_specs(1, 3)
    arguments = {"folder": tmp_path, "videos": 0, "mirrored_images": False, "temperature": 0.0}
    whole = evaluate(specs, play_with(lambda spec: True), **arguments)
    journal = tmp_path / "episodes.jsonl"
    journal.write_text(journal.read_text()[:-20])
    assert len(read_episodes(journal)) == 2
    again: list[EpisodeSpec] = []

    def play(episodes: Iterable[EpisodeSpec], **_: Any) -> Iterator[Trajectory]:
        for spec in episodes:
            again.append(spec)
            yield make_trajectory(spec, success=True)

    assert evaluate(specs, play, **arguments) == whole
    assert again == specs[2:]
    assert read_episodes(journal) == list(whole.episodes)


def test_a_damaged_journal_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_text('{"task_id": 0}\n')
    with pytest.raises(ValueError, match=r"episodes\.jsonl, line 1"):
        evaluate([], play_with(lambda spec: True), folder=tmp_path, videos=0, mirrored_images=False, temperature=0.0)


def test_an_episode_that_was_written_down_twice_is_counted_once(tmp_path: Path) -> None:
    arguments = {"folder": tmp_path, "videos": 0, "mirrored_images": False, "temperature": 0.0}
    evaluate(make_specs(1, 3), play_with(lambda spec: True), **arguments)
    journal = tmp_path / "episodes.jsonl"
    journal.write_text(journal.read_text() * 2)
    assert len(evaluate(make_specs(1, 3), play_with(lambda spec: True), **arguments).episodes) == 3


def test_episodes_that_were_not_asked_for_are_not_counted(tmp_path: Path) -> None:
    arguments = {"folder": tmp_path, "videos": 0, "mirrored_images": False, "temperature": 0.0}
    evaluate(make_specs(1, 5), play_with(lambda spec: True), **arguments)
    assert len(evaluate(make_specs(1, 2), play_with(lambda spec: False), **arguments).episodes) == 2


def test_envs_that_draw_their_own_starts_are_told_apart_by_seed(tmp_path: Path) -> None:
    specs = [EpisodeSpec(group_id=0, sample_id=i, task_id=0, init_state_id=-1, seed=100 + i) for i in range(3)]
    result = evaluate(specs, play_with(lambda spec: True), folder=tmp_path, videos=3, mirrored_images=False, temperature=0.0)
    assert [episode.seed for episode in result.episodes] == [100, 101, 102]
    assert len({episode.video for episode in result.episodes}) == 3


def test_at_most_so_many_videos_are_kept_of_successes_and_of_failures(tmp_path: Path) -> None:
    result = evaluate(
        make_specs(2, 4),
        play_with(lambda spec: spec.task_id == 0),
        folder=tmp_path,
        videos=2,
        mirrored_images=False,
        temperature=0.0,
    )
    shown = [episode for episode in result.episodes if episode.video is not None]
    assert sorted(episode.success for episode in shown) == [False, False, True, True]
    assert {file.name for file in (tmp_path / "videos").iterdir()} == {episode.video for episode in shown}


@pytest.mark.parametrize("mirrored", [False, True])
def test_videos_are_h264_and_show_the_scene_as_a_viewer_would_see_it(mirrored: bool, tmp_path: Path) -> None:
    result = evaluate(
        make_specs(1, 1), play_with(lambda spec: True), folder=tmp_path, videos=1, mirrored_images=mirrored, temperature=0.0
    )
    video = tmp_path / "videos" / str(result.episodes[0].video)
    frames = iio.imread(video)
    assert frames.shape[1:] == (64, 64, 3)
    left, right = frames[:, :, 8:24, 0].mean(), frames[:, :, 40:56, 0].mean()
    assert (left > 200, right > 200) == (not mirrored, mirrored)
    metadata = iio.immeta(video, plugin="FFMPEG")
    assert metadata["codec"] == "h264"
    assert metadata["pix_fmt"].startswith("yuv420p")  # what browsers play


@pytest.mark.parametrize(("actions_per_s", "seconds"), [(20.0, 48 / 20), (10.0, 48 / 10), (None, 48 / 20)])
def test_videos_play_in_the_robots_time_and_stay_a_second_on_the_last_picture(
    actions_per_s: float | None, seconds: float, tmp_path: Path
) -> None:
    """The film has a picture for each of six decisions of eight actions, and the end: here a white one."""

    def play(specs: Iterable[EpisodeSpec], **_: Any) -> Iterator[Trajectory]:
        for spec in specs:
            trajectory = make_trajectory(spec, success=True)
            assert trajectory.film is not None
            trajectory.film[-1] = 255
            yield trajectory

    given = {"folder": tmp_path, "videos": 1, "mirrored_images": False, "temperature": 0.0}
    evaluate(make_specs(1, 1), play, actions_per_s=actions_per_s, **given)
    (video,) = (tmp_path / "videos").iterdir()
    fps = iio.immeta(video, plugin="FFMPEG")["fps"]
    white = iio.imread(video).mean(axis=(1, 2, 3)) > 250
    first_white = int(np.flatnonzero(white)[0])
    assert first_white / fps == pytest.approx(seconds, rel=0.02)
    assert white[first_white:].sum() / fps == pytest.approx(1, abs=1.5 / fps)


def test_few_episodes_are_filmed_and_one_that_is_not_waits_for_them(tmp_path: Path) -> None:
    """A later episode may end first; it has a video only if those that are filmed leave room for one."""
    asked: list[Collection[EpisodeSpec]] = []

    def play(specs: Iterable[EpisodeSpec], *, film: Collection[EpisodeSpec]) -> Iterator[Trajectory]:
        asked.append(film)
        return (make_trajectory(spec, success=spec.init_state_id != 6) for spec in reversed(list(specs)))

    specs = make_specs(1, 8)
    result = evaluate(specs, play, folder=tmp_path, videos=1, mirrored_images=False, temperature=0.0)
    assert asked == [set(specs[:2])]
    assert [episode.init_state_id for episode in result.episodes if episode.video] == [1]
    more = evaluate([*specs, *make_specs(1, 10)[8:]], play, folder=tmp_path, videos=1, mirrored_images=False, temperature=0.0)
    assert asked[1] == {make_specs(1, 10)[8]}, "one video is there already"
    assert len(more.episodes) == 10


def test_odd_image_sizes_lose_a_row_or_column_and_nothing_else(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", np.full((3, 65, 71, 3), 128, np.uint8), fps=2)
    frames = iio.imread(tmp_path / "odd.mp4")
    assert frames.shape == (3 + 2, 64, 70, 3)
    assert np.abs(frames.astype(int) - 128).max() < 6


def test_results_survive_the_round_trip_through_the_journal(tmp_path: Path) -> None:
    result = evaluate(
        make_specs(2, 1), play_with(lambda spec: True), folder=tmp_path, videos=1, mirrored_images=False, temperature=0.0
    )
    first = result.episodes[0]
    assert isinstance(first, EpisodeResult)
    assert (first.length, first.episode_return) == (48, 1.0)
    assert read_episodes(tmp_path / "episodes.jsonl") == list(result.episodes)
