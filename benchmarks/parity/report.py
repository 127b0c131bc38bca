"""What a comparison of all tasks found, as a page of docs: limits, worst cases, a table per suite."""

import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from benchmarks.parity.goals import GoalComparison
from benchmarks.parity.images import ImageComparison
from benchmarks.parity.states import END_EFFECTOR_TOLERANCE_MM, POSITION_TOLERANCE, StateComparison
from vla_envs.libero.suites import libero_version, suite_tasks
from vla_envs.vector.gl_context import open_device

JOINT_TOLERANCE = 1e-6
EPISODE_PIXEL_DIFFERENCE = 16
"""Of 255, in pictures of an episode: each side draws its own physics, nanometres apart."""
MIN_PSNR_DB = 28.0
_FIGURE = "![full and fast detail of six scenes](images/detail.png)"


@dataclass(frozen=True, kw_only=True)
class TaskParity:
    """What was found about one task; what a failure left out is None."""

    suite: str
    task_id: int
    seconds: float
    error: str | None
    fixtures: float | None = None
    """Largest difference of a fixture's pose, in m or as quaternion."""
    states: StateComparison | None = None
    images: ImageComparison | None = None
    episode_images: ImageComparison | None = None
    goals: GoalComparison | None = None
    psnr: dict[str, float] = field(default_factory=dict)
    """Camera -> dB."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TaskParity":
        """The inverse of `dataclasses.asdict`."""
        kinds = {"states": StateComparison, "images": ImageComparison, "episode_images": ImageComparison}
        parts = {name: None if data[name] is None else kind(**data[name]) for name, kind in kinds.items()}
        goals = data["goals"]
        if goals is not None:
            parts["goals"] = GoalComparison(**goals | {"always_or_never": tuple(goals["always_or_never"])})
        return cls(**data | parts)

    def line(self) -> str:
        """For the terminal."""
        problems = failures(self)
        return f"{self.suite} {self.task_id}: {'; '.join(problems) if problems else 'agrees'} ({self.seconds:.0f} s)"


def failures(result: TaskParity) -> list[str]:
    """What is beyond its limit; contact chaos, where LIBERO differs as much from itself, is not counted."""
    if result.error is not None:
        return [result.error]
    states, images, episode, goals = result.states, result.images, result.episode_images, result.goals
    assert result.fixtures is not None
    assert states is not None
    assert images is not None
    assert episode is not None
    assert goals is not None
    problems = []
    if result.fixtures > 0.0:
        problems.append(f"a fixture's pose differs by {result.fixtures:.1e}")
    if states.joints > JOINT_TOLERANCE:
        problems.append(f"joints differ by {states.joints:.1e} rad")
    if states.positions > max(POSITION_TOLERANCE, states.chaos_positions or 0.0):
        problems.append(f"positions differ by {states.positions:.1e}")
    if states.proprioception > max(POSITION_TOLERANCE, states.chaos_positions or 0.0):
        problems.append(f"proprioception differs by {states.proprioception:.1e}")
    if states.end_effector_mm > max(END_EFFECTOR_TOLERANCE_MM, states.chaos_end_effector_mm or 0.0):
        problems.append(f"end effector differs by {states.end_effector_mm:.2f} mm")
    if states.num_verdicts_different or goals.num_different:
        problems.append(f"{states.num_verdicts_different + goals.num_different} verdicts differ")
    if images.num_identical < images.num_images:
        problems.append(f"{images.num_images - images.num_identical} of {images.num_images} pictures differ")
    if episode.largest_difference > EPISODE_PIXEL_DIFFERENCE:
        problems.append(f"a pixel of an episode's picture differs by {episode.largest_difference} of 255")
    return problems


def write_report(file: Path, results: list[TaskParity], work: list[tuple[str, int]]) -> None:
    """Write the page.

    Args:
        file: Where.
        results: Of the tasks that were compared, failed ones included.
        work: All tasks that were to be compared.
    """
    whole = [result for result in results if result.error is None]
    lines = [
        "# Parity with LIBERO",
        "",
        "Every task of the five suites, played and drawn by stock LIBERO (robosuite 1.4) and by `vla_envs` side by side.",
        f"Written by `make parity`: {_where()}.",
        "",
        *_extent(results, work),
        *_what_is_compared(),
        "## Worst cases",
        "",
        *(_summary(whole) if whole else []),
        "",
        *_chaos(whole),
        "## Simplified scenes",
        "",
        '`detail="fast"` is meant for speed, not for equality; on average its pictures must reach '
        f"{MIN_PSNR_DB:.0f} dB. Left of each pair `full`, right `fast`:",
        "",
        _FIGURE,
        "",
    ]
    for suite in dict.fromkeys(suite for suite, _ in work):
        lines += [f"## {suite}", "", *_suite_table([result for result in results if result.suite == suite]), ""]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines))


def _where() -> str:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    renderer = open_device("auto").renderer
    versions = f"{libero_version()}, MuJoCo {mujoco.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    return f"{datetime.date.today()}; {versions}; {cpu}, {os.cpu_count()} cores; drawn by {renderer}"


def _extent(results: list[TaskParity], work: list[tuple[str, int]]) -> list[str]:
    done = {(result.suite, result.task_id) for result in results}
    problems = {(result.suite, result.task_id): failures(result) for result in results}
    beyond = [f"* {suite} {task_id}: {'; '.join(found)}" for (suite, task_id), found in problems.items() if found]
    lines = [f"**{len(results) - len(beyond)} of {len(work)} tasks agree.**"]
    if len(done) < len(work):
        missing = [f"{suite} {task_id}" for suite, task_id in work if (suite, task_id) not in done]
        lines += ["", f"Not compared ({len(missing)}): {', '.join(missing)}."]
    return [*lines, "", *(["Beyond the limits:", "", *beyond, ""] if beyond else [])]


def _what_is_compared() -> list[str]:
    return [
        "* **Fixtures**: cabinets, stoves, microwaves stand exactly where LIBERO's `env.seed(0)` and `env.reset()` put them,",
        "  called once after the env was made. LIBERO moves them at every further reset; for the rest they are put back.",
        "* **States**: one of the benchmark's initial states, the same random actions on both sides. After 20 control steps,",
        f"  arm joints within {JOINT_TOLERANCE:g} rad and all positions (joints, objects, fixtures) within",
        f"  {POSITION_TOLERANCE:g}; after 100, the end effector within {END_EFFECTOR_TOLERANCE_MM:g} mm.",
        "* **Proprioception**: over the first 20 steps, against `robot0_eef_pos`, `robot0_eef_quat` (as axis-angle) and",
        f"  `robot0_gripper_qpos`, within {POSITION_TOLERANCE:g}.",
        '* **Pictures**, `detail="full"`: `agentview_image` and `robot0_eye_in_hand_image`, of the same state at 128, 224 and',
        "  256 pixels, after random actions, and at 256 with drawers, knobs and objects near the goal; identical means every",
        "  byte. After an episode's first control step, where each side draws its own physics, nanometres apart, a few pixels",
        f"  may round differently: by at most {EPISODE_PIXEL_DIFFERENCE} of 255.",
        "* **Goals**: LIBERO's own check, on states made to satisfy or miss each predicate, and on the first 20 control steps.",
        '* **PSNR** of `detail="fast"` against `full`, 256 pixels, mean over two states.',
        "",
    ]


def _summary(results: list[TaskParity]) -> list[str]:
    rows = [
        ("fixtures' poses (m, quaternion)", "0", [r.fixtures or 0.0 for r in results], "{:.2g}"),
        ("arm joints after 20 steps (rad)", f"{JOINT_TOLERANCE:g}", [_states(r).joints for r in results], "{:.1e}"),
        ("all positions after 20 steps", f"{POSITION_TOLERANCE:g}", [_states(r).positions for r in results], "{:.1e}"),
        ("proprioception", f"{POSITION_TOLERANCE:g}", [_states(r).proprioception for r in results], "{:.1e}"),
        (
            "end effector after 100 steps (mm)",
            f"{END_EFFECTOR_TOLERANCE_MM:g}",
            [_states(r).end_effector_mm for r in results],
            "{:.1e}",
        ),
    ]
    lines = ["| difference | limit | median | worst | where |", "|---|---|---|---|---|"]
    for name, limit, values, style in rows:
        worst = results[int(np.argmax(values))]
        median, largest = style.format(np.median(values)), style.format(max(values))
        where = f"{worst.suite} {worst.task_id}" if max(values) > 0.0 else ""
        lines.append(f"| {name} | {limit} | {median} | {largest} | {where} |")
    same_state = [r.images for r in results if r.images is not None]
    episodes = [r.episode_images for r in results if r.episode_images is not None]
    goals = [r.goals for r in results if r.goals is not None]
    steps_different = sum(_states(r).num_verdicts_different for r in results)
    never = sum(bool(comparison.always_or_never) for comparison in goals)
    return [
        *lines,
        "",
        f"* Pictures of the same state: {sum(p.num_identical for p in same_state)} of {sum(p.num_images for p in same_state)} "
        f"are identical; the largest difference of a pixel is {max(p.largest_difference for p in same_state)} of 255.",
        f"* Pictures of episodes: {sum(p.num_identical for p in episodes)} of {sum(p.num_images for p in episodes)} are "
        f"identical; the largest difference of a pixel is {max(p.largest_difference for p in episodes)} of 255, the largest "
        f"share of a picture {max(p.largest_share for p in episodes):.1e}.",
        f"* Goals: {sum(g.num_different for g in goals)} of {sum(g.num_states for g in goals)} verdicts on made states differ "
        f"({sum(g.num_successes for g in goals)} are successes), and {steps_different} along episodes; in {never} tasks some "
        "predicate held in all of the made states, or in none.",
        f"* PSNR of `fast`, mean over tasks: {_mean_psnr(results)}.",
    ]


def _chaos(results: list[TaskParity]) -> list[str]:
    chaotic = [result for result in results if _states(result).chaos_end_effector_mm is not None]
    if not chaotic:
        return ["Contact chaos (something jams or tips over, and differences grow exponentially) broke no limit.", ""]
    lines = [
        "Contact chaos: where something is jammed or tips over, differences grow exponentially, in LIBERO itself as well.",
        "Beside the difference between LIBERO and `vla_envs`, that between LIBERO and LIBERO with every joint moved by up to a",
        "nanometre or nanoradian:",
        "",
        "| task | positions after 20 steps | LIBERO from itself | end effector after 100 steps (mm) | LIBERO from itself |",
        "|---|---|---|---|---|",
    ]
    for result in chaotic:
        states = _states(result)
        lines.append(
            f"| {result.suite} {result.task_id} | {states.positions:.1e} | {states.chaos_positions:.1e} | "
            f"{states.end_effector_mm:.2g} | {states.chaos_end_effector_mm:.2g} |"
        )
    return [*lines, ""]


def _suite_table(results: list[TaskParity]) -> list[str]:
    if not results:
        return ["Not compared."]
    tasks = suite_tasks(results[0].suite)
    lines = [
        "| task | instruction | joints (rad) | positions | end effector (mm) | identical pictures: same state, episode "
        "| verdicts differing (successes) | PSNR agentview, wrist (dB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        row = [str(result.task_id), tasks[result.task_id].instruction]
        if result.error is not None:
            row += [f"failed: {result.error}", "", "", "", "", ""]
        else:
            states, images, episode, goals = _states(result), result.images, result.episode_images, result.goals
            assert images is not None
            assert episode is not None
            assert goals is not None
            row += [f"{states.joints:.0e}", f"{states.positions:.0e}", f"{states.end_effector_mm:.0e}"]
            row += [f"{images.num_identical} of {images.num_images}, {episode.num_identical} of {episode.num_images}"]
            row += [f"{goals.num_different} of {goals.num_states} ({goals.num_successes})"]
            row += [", ".join(f"{value:.1f}" for value in result.psnr.values())]
        lines.append(f"| {' | '.join(row)} |")
    whole = [result for result in results if result.error is None]
    return [*lines, "", f"PSNR of `fast`, mean: {_mean_psnr(whole)}."] if whole else lines


def _mean_psnr(results: list[TaskParity]) -> str:
    cameras = results[0].psnr
    return ", ".join(f"{camera} {np.mean([result.psnr[camera] for result in results]):.1f} dB" for camera in cameras)


def _states(result: TaskParity) -> StateComparison:
    assert result.states is not None
    return result.states
