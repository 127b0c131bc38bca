"""Success and reward as a user's own functions say, from the privileged view of a slot after each control step.

Invariant: a function sees the state after every control step that is played, once and in order; a chunk ends where it says
success. What it raises is passed on as it is. Without a function for success the task's own goal decides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from vla_envs.libero.privileged import PrivilegedView
from vla_envs.vector.engine import Engine, StepResult

Look = Callable[[int], PrivilegedView]


@dataclass(frozen=True, kw_only=True)
class OwnGoal:
    """What is asked after each control step. At least one of the two is given."""

    success_fn: Callable[[PrivilegedView], bool] | None
    reward_fn: Callable[[PrivilegedView], float] | None

    def succeeded(self, view: PrivilegedView, *, task_goal: bool) -> bool:
        """Whether the episode ends here; `task_goal` without a function of one's own.

        Raises:
            ValueError: The function returned no truth value.
        """
        if self.success_fn is None:
            return task_goal
        said = self.success_fn(view)
        if not isinstance(said, bool | np.bool_):
            raise ValueError(f"success_fn must return True or False, got {said!r} from {_name(self.success_fn)}")
        return bool(said)

    def reward(self, view: PrivilegedView, *, success: bool) -> float:
        """Of one control step; 1 for success, else 0, without a function of one's own.

        Raises:
            ValueError: The function returned no finite number.
        """
        if self.reward_fn is None:
            return float(success)
        said = self.reward_fn(view)
        if not isinstance(said, int | float | np.integer | np.floating) or not np.isfinite(said):
            raise ValueError(f"reward_fn must return a finite number, got {said!r} from {_name(self.reward_fn)}")
        return float(said)

    def check(self, view: PrivilegedView) -> None:
        """Ask both once, to see that they work; raises as they do."""
        self.reward(view, success=self.succeeded(view, task_goal=False))

    def play(
        self,
        engine: Engine,
        look: Look,
        slots: Sequence[int],
        actions: Any,
        num_steps: np.ndarray,
        *,
        film: Mapping[int, int],
    ) -> tuple[StepResult, np.ndarray]:
        """As `Engine.step`, one control step after the other; also returns the rewards (n,) float64: sums over the steps."""
        played, reached = np.zeros(len(slots), np.int32), np.zeros(len(slots), bool)
        rewards, faults = np.zeros(len(slots)), [""] * len(slots)
        frames: dict[int, list[np.ndarray]] = {slot: [] for slot in film}
        for step in range(int(max(num_steps, default=0))):
            rows = [row for row in range(len(slots)) if step < num_steps[row] and not reached[row] and not faults[row]]
            if not rows:
                break
            result = engine.step(
                [slots[row] for row in rows], actions[rows, step : step + 1], np.ones(len(rows), int), draw=False
            )
            for index, row in enumerate(rows):
                played[row] += result.num_steps[index]
                faults[row] = result.faults[index]
                if not faults[row]:
                    view = look(slots[row])
                    reached[row] = self.succeeded(view, task_goal=bool(result.goal_reached[index]))
                    rewards[row] += self.reward(view, success=bool(reached[row]))
                slot, ended = slots[row], reached[row] or faults[row] or played[row] == num_steps[row]
                if slot in film and (ended or played[row] % film[slot] == 0):
                    engine.draw([slot])
                    frames[slot].append(next(iter(engine.pictures().values()))[slot].copy())
        engine.draw(slots)
        shown = {slot: np.array(pictures) for slot, pictures in frames.items() if pictures}
        return StepResult(num_steps=played, goal_reached=reached, faults=tuple(faults), frames=shown), rewards


def own_goal(success_fn: Any, reward_fn: Any) -> OwnGoal | None:
    """From what a user gave: functions, or their names as MODULE:NAME; None where nothing was given.

    Raises:
        ValueError: Neither a function nor the name of one.
    """
    success, reward = _function("success_fn", success_fn), _function("reward_fn", reward_fn)
    return None if success is None and reward is None else OwnGoal(success_fn=success, reward_fn=reward)


def _function(option: str, given: Any) -> Callable[..., Any] | None:
    found = given
    if isinstance(given, str):
        module, _, name = given.partition(":")
        if not module or not name:
            raise ValueError(f"{option} must be a function, or its name as MODULE:NAME, got {given!r}")
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, and lacks another
            raise ValueError(f"{option}={given!r}: there is no module {error.name!r}") from error
        for part in name.split("."):
            found = getattr(found, part, None)
    if not callable(found) and given is not None:
        raise ValueError(f"{option} must be a function, or its name as MODULE:NAME, got {given!r}")
    return found


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
