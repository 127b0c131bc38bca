"""Videos that fit into a page: the newest evaluations first, successes and failures in turn."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from vla_train.evaluation.evaluate import EpisodeResult
from vla_train.report.contents import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedVideo:
    """One episode to watch."""

    evaluation: str
    """Title of its evaluation."""
    episode: EpisodeResult
    data_url: str
    """The whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoChoice:
    """What is shown, and what is not."""

    shown: tuple[EmbeddedVideo, ...]
    left_out: int
    """Videos in the run's folder that the page has no room for."""
    missing: int
    """Videos that results name and that are not in the folder."""


def choose_videos(evaluations: Sequence[Evaluation], *, max_videos: int, max_bytes: int) -> VideoChoice:
    """Take videos while there is room.

    Args:
        evaluations: Newest first.
        max_videos: Most that are shown.
        max_bytes: Bound of the files' sizes; in the page they take a third more.
    """
    shown: list[EmbeddedVideo] = []
    room = max_bytes
    left_out = 0
    for evaluation in evaluations:
        for file, episode in _in_turn(evaluation.videos):
            size = file.stat().st_size
            if size > room or len(shown) == max_videos:
                left_out += 1
                continue
            room -= size
            shown.append(EmbeddedVideo(evaluation=evaluation.title, episode=episode, data_url=data_url(file, "video/mp4")))
    return VideoChoice(
        shown=tuple(shown), left_out=left_out, missing=sum(evaluation.missing_videos for evaluation in evaluations)
    )


def data_url(file: Path, media_type: str) -> str:
    """A file's content as a URL that needs no file."""
    return f"data:{media_type};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def _in_turn(videos: Sequence[tuple[Path, EpisodeResult]]) -> list[tuple[Path, EpisodeResult]]:
    """A success, a failure, a success, ..."""
    successes = [video for video in videos if video[1].success]
    failures = [video for video in videos if not video[1].success]
    return [video for video in chain(*zip_longest(successes, failures)) if video is not None]
