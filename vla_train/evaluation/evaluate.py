"""Evaluation: which episodes succeeded, per task, with confidence intervals and videos.

Invariant: every finished episode is written down before the next is asked for, so an interrupted evaluation goes on where
it stopped, and an episode is never counted twice.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import imageio.v3 as iio
import numpy as np

from vla_train.errors import DamagedFileError
from vla_train.types import EpisodeSpec, Trajectory

_ACTIONS_PER_S = 20.0
"""Where an env does not say how fast its robot acts: as LIBERO's."""
_LAST_PICTURE_S = 1.0
"""How long a video shows the end."""

Identity = tuple[float, ...]
"""What tells an evaluation's episodes apart, and is the same in the next evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """The outcome of one evaluation episode."""

    task_id: int
    init_state_id: int
    seed: int
    instruction: str
    success: bool
    length: int
    """Env steps played."""
    episode_return: float
    temperature: float = 0.0
    """At which the policy played; 0 is greedy."""
    sample_id: int = 0
    """Number among the episodes of one start."""
    video: str | None = None
    """File name of the episode's video, where one was kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """Success of one task over its episodes."""

    task_id: int
    instruction: str
    episodes: int
    successes: int

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.successes, self.episodes)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """All episodes of one evaluation at one temperature, in the order they finished."""

    episodes: tuple[EpisodeResult, ...]
    temperature: float

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Mean over episodes; 0 when nothing was played."""
        return self.successes / max(len(self.episodes), 1)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.successes, len(self.episodes))

    @property
    def tasks(self) -> tuple[TaskResult, ...]:
        """One row per task, by task id."""
        by_task: dict[int, list[EpisodeResult]] = {}
        for episode in self.episodes:
            by_task.setdefault(episode.task_id, []).append(episode)
        return tuple(
            TaskResult(
                task_id=task_id,
                instruction=episodes[0].instruction,
                episodes=len(episodes),
                successes=sum(episode.success for episode in episodes),
            )
            for task_id, episodes in sorted(by_task.items())
        )


def play_name(temperature: float) -> str:
    """How a policy plays at a temperature, in words."""
    return f"sampled at T = {temperature:g}" if temperature else "greedy"


def summary(result: EvaluationResult) -> dict[str, Any]:
    """An evaluation at one temperature as JSON data: rates with 95 % intervals, in all and per task."""
    low, high = result.interval
    tasks = [asdict(task) | {"success_rate": task.success_rate, "interval": list(task.interval)} for task in result.tasks]
    return {
        "success_rate": result.success_rate,
        "interval_low": low,
        "interval_high": high,
        "episodes": len(result.episodes),
        "successes": result.successes,
        "tasks": tasks,
    }


def wilson_interval(successes: int, episodes: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a success rate (95 % for z = 1.96); (0, 1) when nothing was played."""
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


class Play(Protocol):
    """Plays specs and yields each trajectory as it ends, those in `film` with all their frames (`Rollout.play`)."""

    def __call__(self, specs: Iterable[EpisodeSpec], *, film: Collection[EpisodeSpec]) -> Iterator[Trajectory]: ...


def evaluate(
    episodes: Sequence[EpisodeSpec],
    play: Play,
    *,
    temperature: float,
    folder: Path,
    videos: int,
    mirrored_images: bool,
    actions_per_s: float | None = None,
    filmed: Collection[Identity] = (),
    on_episode: Callable[[int, int, int], None] | None = None,
) -> EvaluationResult:
    """Play the episodes that `folder` does not hold yet, and return all of them.

    Args:
        episodes: What to play.
        play: Plays them.
        temperature: At which it plays; 0 is greedy.
        folder: Takes `episodes.jsonl`, one line per finished episode, and `videos/`; several temperatures may share it.
        videos: Most videos kept of successes, and of failures.
        mirrored_images: Images are mirrored left to right; videos undo it, so that "left" in an instruction is left.
        actions_per_s: How fast the robot acts: videos play in its time. None where the env does not say.
        filmed: Episodes whose videos are kept whatever their outcome: those of an earlier evaluation, to compare.
        on_episode: Told after each episode how many have succeeded, how many are done, and how many there are, those of an
            earlier part included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "episodes.jsonl"
    wanted = {identity(spec, temperature) for spec in episodes}
    _drop_partial_line(journal)
    done = {key: result for result in read_episodes(journal) if (key := identity(result, result.temperature)) in wanted}
    results = list(done.values())
    kept = {outcome: sum(r.video is not None and r.success == outcome for r in results) for outcome in (True, False)}
    remaining = [spec for spec in episodes if identity(spec, temperature) not in done]
    # All frames of an episode cost several times as much as one per decision: few have them, before their outcome is known.
    again = {spec for spec in remaining if identity(spec, temperature) in filmed}
    film = again or set(remaining[: max(0, 2 * videos - sum(kept.values()))])
    awaited = set(film)
    with journal.open("a", encoding="utf-8") as lines:
        for trajectory in play(remaining, film=film):
            spec, video = trajectory.spec, None
            has_room = kept[trajectory.success] < videos and (spec in film or not awaited)
            awaited.discard(spec)
            if trajectory.film is not None and (has_room or spec in again):
                kept[trajectory.success] += 1
                video = _video_name(trajectory, temperature)
                images = trajectory.film[:, :, ::-1] if mirrored_images else trajectory.film
                fps = (len(images) - 1) * (actions_per_s or _ACTIONS_PER_S) / trajectory.length
                write_video(folder / "videos" / video, images, fps=fps)
            result = EpisodeResult(
                task_id=spec.task_id,
                init_state_id=spec.init_state_id,
                seed=spec.seed,
                instruction=trajectory.instruction,
                success=trajectory.success,
                length=trajectory.length,
                episode_return=trajectory.episode_return,
                temperature=temperature,
                sample_id=spec.sample_id,
                video=video,
            )
            results.append(result)
            lines.write(json.dumps(asdict(result)) + "\n")
            lines.flush()
            if on_episode is not None:
                on_episode(sum(r.success for r in results), len(results), len(episodes))
    return EvaluationResult(episodes=tuple(results), temperature=temperature)


def read_episodes(journal: Path) -> list[EpisodeResult]:
    """Results written so far, in the order they finished; a last line that is not complete is left out.

    Raises:
        DamagedFileError: A line is not the result of an episode.
    """
    if not journal.exists():
        return []
    complete, _, _ = journal.read_bytes().rpartition(b"\n")
    results = []
    for number, line in enumerate(complete.splitlines(), start=1):
        if not line:
            continue
        try:
            results.append(EpisodeResult(**json.loads(line)))
        except (ValueError, TypeError) as error:
            why = f"not the result of an episode ({error})"
            raise DamagedFileError(f"{journal}, line {number}: {why}: delete this line") from None
    return results


def identity(episode: EpisodeSpec | EpisodeResult, temperature: float) -> Identity:
    """What tells an episode from the others of an evaluation. Greedy ones of one start are the same, whatever their number."""
    seed = episode.seed if episode.init_state_id < 0 else 0
    return episode.task_id, episode.init_state_id, seed, episode.sample_id if temperature else 0, temperature


def write_video(path: Path, images: np.ndarray, *, fps: float) -> None:
    """Write (T, H, W, 3) uint8 frames as an H.264 file that browsers play, and that stays on the last one for a while."""
    images = np.concatenate([images, np.repeat(images[-1:], round(_LAST_PICTURE_S * fps), axis=0)])
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2  # H.264 with 4:2:0 colour needs even sides
    iio.imwrite(path, images[:, :height, :width], fps=fps, codec="libx264", macro_block_size=2)


def _video_name(trajectory: Trajectory, temperature: float) -> str:
    spec = trajectory.spec
    start = spec.init_state_id if spec.init_state_id >= 0 else spec.seed
    sample = f"_t{temperature:g}_sample{spec.sample_id}" if temperature else ""
    return f"task{spec.task_id:02d}_start{start}{sample}_{'success' if trajectory.success else 'failure'}.mp4"


def _drop_partial_line(journal: Path) -> None:
    """Cut off a last line that a crash left incomplete: its episode is played again."""
    if journal.exists():
        text = journal.read_text(encoding="utf-8")
        complete, newline, partial = text.rpartition("\n")
        if partial:
            journal.write_text(complete + newline, encoding="utf-8")
