"""The scripted expert on one task: an episode from each of the first initial states, all at once, drawing nothing."""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np

import vla_envs  # noqa: F401
from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.expert.expert import Expert


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What the expert reached."""

    suite: str
    task_id: int
    instruction: str
    episodes: int
    """0 if it declined."""
    successes: int
    median_steps: float
    """Control steps of the successful episodes; 0 if there are none."""
    declined: str
    """Why; "" if it did not."""

    def line(self) -> str:
        """The result in one line."""
        reached = f"{self.successes}/{self.episodes}, median {self.median_steps:.0f} control steps"
        return f"{self.suite} {self.task_id} {self.instruction}: {f'declined: {self.declined}' if self.declined else reached}"


def sweep_task(task: tuple[str, int], *, num_states: int, noise: float) -> TaskResult:
    """Play one task.

    Args:
        task: Suite and task id.
        num_states: How many of its initial states, from the first.
        noise: See `LiberoEnv.make_expert`; the seed of state i is i.
    """
    suite, task_id = task
    envs = gym.make_vec(
        "Libero-v0",
        num_envs=num_states,
        suite=suite,
        task_id=task_id,
        detail="fast",
        cameras=(),
        autoreset_mode="Disabled",
        num_threads=1,
    )
    assert isinstance(envs, LiberoEnv)
    try:
        envs.reset(seed=0, options={"init_state_id": np.arange(num_states)})
        instruction = envs.instructions[task_id]
        declined = envs.expert_declines(0)
        if declined:
            return _result(suite, task_id, instruction, np.zeros(0, bool), np.zeros(0), declined)
        experts = [_expert(envs, slot, noise=noise) for slot in range(num_states)]
        over = np.array([expert is None for expert in experts])
        success, lengths = np.zeros(num_states, bool), np.zeros(num_states)
        while not over.all():
            actions = np.zeros((num_states, 7))
            for slot in np.flatnonzero(~over):
                expert = experts[slot]
                assert expert is not None
                try:
                    actions[slot] = expert.act()
                except UnsupportedTaskError:  # it cannot go on from here
                    over[slot] = True
            _, _, terminated, truncated, info = envs.step(actions)
            ended = (terminated | truncated) & ~over
            success |= terminated & ended
            lengths[ended] = info["episode_length"][ended] if ended.any() else 0
            over |= ended
        return _result(suite, task_id, instruction, success, lengths, "")
    finally:
        envs.close()


def _expert(envs: LiberoEnv, slot: int, *, noise: float) -> Expert | None:
    """The expert of a slot; None where it declines this initial state, though not the task: a failure."""
    try:
        return envs.make_expert(slot, noise=noise, seed=slot)
    except UnsupportedTaskError:
        return None


def _result(suite: str, task_id: int, instruction: str, success: np.ndarray, lengths: np.ndarray, declined: str) -> TaskResult:
    return TaskResult(
        suite=suite,
        task_id=task_id,
        instruction=instruction,
        episodes=len(success),
        successes=int(success.sum()),
        median_steps=float(np.median(lengths[success])) if success.any() else 0.0,
        declined=declined,
    )
