"""What `sleep=True` changes: the expert's actions, played again from the same starts with all objects awake and with sleep.

    python -m benchmarks.parity.sleep --suites libero_object libero_goal          # half a minute or more a suite

Two lines a suite: of the starts that are mastered with all awake, how many are mastered with sleep, how many of these in the
same control step, and how far positions (joints, objects; m and rad) of the latter are apart at the end. Then the same with all
awake and actions that are a millionth larger: how much of it is that contacts are chaotic.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_envs import LiberoEnv
from vla_envs.libero.cache import load_scene
from vla_envs.libero.suites import TIME_LIMITS, suite_tasks

CHUNK_SIZE = 8
MILLIONTH = 1e-6


@dataclass(frozen=True, kw_only=True)
class Played:
    """One start."""

    steps: int
    """Control steps until the task was done; 0: it was not."""
    positions: np.ndarray


def main() -> None:
    """Play, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", nargs="+", default=[suite for suite in TIME_LIMITS if suite != "libero_90"])
    parser.add_argument("--states", type=int, default=3, help="initial states of each task")
    arguments = parser.parse_args()
    for suite in arguments.suites:
        awake, asleep, shifted = [], [], []
        for task_id in suite_tasks(suite):
            actions = of_expert(suite, task_id, arguments.states)
            if actions is not None:
                awake += replay(suite, task_id, actions, sleep=False)
                asleep += replay(suite, task_id, actions, sleep=True)
                shifted += replay(suite, task_id, actions + MILLIONTH, sleep=False)
        print(f"{suite}, with sleep: {compare(awake, asleep)}")
        print(f"{suite}, awake, actions a millionth larger: {compare(awake, shifted)}", flush=True)


def of_expert(suite: str, task_id: int, num_states: int) -> np.ndarray | None:
    """What the expert does from the first initial states, (C, N, K, 7); None where it declines the task."""
    env = LiberoEnv(num_states, suite=suite, task_id=task_id, detail="fast", cameras=(), autoreset_mode="Disabled")
    env.reset(seed=0, options={"init_state_id": np.arange(num_states)})
    if env.expert_declines(0):
        env.close()
        return None
    experts = [env.make_expert(slot, noise=0.05, seed=slot) for slot in range(num_states)]
    actions, over = [], np.zeros(num_states, bool)
    while not over.all():
        actions.append([expert.act() for expert in experts])
        _, _, terminated, truncated, _ = env.step(np.array(actions[-1]))
        over |= terminated | truncated
    env.close()
    missing = -len(actions) % CHUNK_SIZE
    played = np.array(actions + actions[-1:] * missing)
    return played.reshape(-1, CHUNK_SIZE, num_states, 7).swapaxes(1, 2)


def replay(suite: str, task_id: int, actions: np.ndarray, *, sleep: bool) -> list[Played]:
    """The same actions from the same starts."""
    num_states = actions.shape[1]
    options = {"detail": "fast", "cameras": (), "chunk_size": CHUNK_SIZE, "autoreset_mode": "Disabled", "sleep": sleep}
    env = LiberoEnv(num_states, suite=suite, task_id=task_id, **options)
    env.reset(seed=0, options={"init_state_id": np.arange(num_states)})
    steps, done = np.zeros(num_states, int), np.zeros(num_states, bool)
    for chunk in actions:
        _, _, terminated, _, infos = env.step(chunk)
        steps += infos["num_steps"]
        done |= terminated
    num_positions = load_scene(suite, task_id, detail="fast").model.nq
    positions = [state[1 : 1 + num_positions] for state in env.get_state()]
    env.close()
    return [Played(steps=int(steps[slot]) if done[slot] else 0, positions=positions[slot]) for slot in range(num_states)]


def compare(awake: Sequence[Played], others: Sequence[Played]) -> str:
    """The line."""
    mastered = [(one, other) for one, other in zip(awake, others, strict=True) if one.steps]
    gained = sum(not one.steps and other.steps > 0 for one, other in zip(awake, others, strict=True))
    alike = [np.abs(one.positions - other.positions) for one, other in mastered if one.steps == other.steps]
    apart = np.array([differences.max() for differences in alike])
    again = sum(other.steps > 0 for _, other in mastered)
    return (
        f"of {len(awake)} starts {len(mastered)} mastered awake, {again} of them so, too ({len(alike)} in the same control "
        f"step), {gained} only so; apart at the end: median {np.median(apart):.1g}, 9 of 10 within "
        f"{np.quantile(apart, 0.9):.1g}, at most {apart.max():.1g}"
    )


if __name__ == "__main__":
    main()
