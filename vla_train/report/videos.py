"""Videos that fit into a page: the same episodes before and after, then the newest, successes and failures in turn."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from vla_train.evaluation.evaluate import EpisodeResult, identity
from vla_train.report.contents import Evaluation

_Video = tuple[Path, EpisodeResult]


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

    pairs: tuple[tuple[EmbeddedVideo, EmbeddedVideo], ...]
    """One episode each, before and after: by the run's first evaluation and by its newest."""
    others: tuple[EmbeddedVideo, ...]
    left_out: int
    """Videos in the run's folder that the page has no room for."""
    missing: int
    """Videos that results name and that are not in the folder."""


class _Room:
    """What the page can still hold."""

    def __init__(self, *, videos: int, size: int) -> None:
        self.videos, self.size = videos, size

    def take(self, *files: Path) -> bool:
        """Take room for all of some files, or for none."""
        size = sum(file.stat().st_size for file in files)
        if size > self.size or len(files) > self.videos:
            return False
        self.size -= size
        self.videos -= len(files)
        return True


def choose_videos(evaluations: Sequence[Evaluation], *, max_videos: int, max_bytes: int) -> VideoChoice:
    """Take videos while there is room: pairs may fill half of it.

    Args:
        evaluations: Newest first.
        max_videos: Most that are shown.
        max_bytes: Bound of the files' sizes; in the page they take a third more.
    """
    of_run = [evaluation for evaluation in evaluations if evaluation.of_iteration]
    room = _Room(videos=max_videos // 2, size=max_bytes // 2)
    pairs = [pair for pair in _pairs(of_run[-1], of_run[0]) if room.take(*(video[0] for video in pair))] if of_run else []
    paired = {file for pair in pairs for file, _ in pair}
    room.videos, room.size = room.videos + max_videos - max_videos // 2, room.size + max_bytes - max_bytes // 2
    others: list[EmbeddedVideo] = []
    left_out = 0
    for evaluation in evaluations:
        for video in _in_turn([video for video in evaluation.videos if video[0] not in paired]):
            if room.take(video[0]):
                others.append(_embed(evaluation, video))
            else:
                left_out += 1
    return VideoChoice(
        pairs=tuple((_embed(of_run[-1], before), _embed(of_run[0], after)) for before, after in pairs),
        others=tuple(others),
        left_out=left_out,
        missing=sum(evaluation.missing_videos for evaluation in evaluations),
    )


def data_url(file: Path, media_type: str) -> str:
    """A file's content as a URL that needs no file."""
    return f"data:{media_type};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def _embed(evaluation: Evaluation, video: _Video) -> EmbeddedVideo:
    file, episode = video
    return EmbeddedVideo(evaluation=evaluation.title, episode=episode, data_url=data_url(file, "video/mp4"))


def _pairs(before: Evaluation, after: Evaluation) -> list[tuple[_Video, _Video]]:
    """The episodes of which both evaluations have videos; those learnt come first, then those that changed nothing."""
    if before is after:
        return []
    later = {identity(video[1], video[1].temperature): video for video in after.videos}
    known = [(video, identity(video[1], video[1].temperature)) for video in before.videos]
    pairs = [(video, later[name]) for video, name in known if name in later]
    return sorted(pairs, key=lambda pair: pair[0][1].success - pair[1][1].success)


def _in_turn(videos: Sequence[_Video]) -> list[_Video]:
    """A success, a failure, a success, ..."""
    successes = [video for video in videos if video[1].success]
    failures = [video for video in videos if not video[1].success]
    return [video for video in chain(*zip_longest(successes, failures)) if video is not None]
