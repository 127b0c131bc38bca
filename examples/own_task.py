"""A LIBERO task of your own: objects, regions and the goal in a BDDL file, the reward as a function.

    python examples/own_task.py

compiles `own_task.bddl` (some seconds, once), and lets the scripted expert play it from random starts. To train on it:

    PYTHONPATH=examples python -m vla_train train --env.kwargs bddl_file=examples/own_task.bddl reward_fn=own_task:nearness \
        --algo.reward return --output runs/own-task
"""

from pathlib import Path

import gymnasium as gym
import numpy as np

from vla_envs import PrivilegedView

BDDL = Path(__file__).with_suffix(".bddl")


def nearness(view: PrivilegedView) -> float:
    """1 where the bowl is above the plate, less with every centimetre between them. Called after each control step."""
    apart = view.body("akita_black_bowl_1").position[:2] - view.body("plate_1").position[:2]
    return float(np.exp(-10 * np.linalg.norm(apart)))  # metres


def main() -> None:
    envs = gym.make_vec(
        "Libero-v0", num_envs=2, bddl_file=BDDL, reward_fn=nearness, cameras=(), detail="fast", autoreset_mode="Disabled"
    )
    observation, info = envs.reset(seed=0)
    print(f"{observation['instruction'][0]}: from starts {info['init_state_id']} of {envs.unwrapped.num_init_states[0]}")
    experts = [envs.unwrapped.make_expert(slot, seed=slot) for slot in range(2)]
    for _ in range(150):
        *_, terminated, truncated, info = envs.step(np.array([expert.act() for expert in experts]))
        for slot in np.flatnonzero(terminated | truncated):
            print(f"slot {slot}: success {terminated[slot]}, return {info['episode_return'][slot]:.1f}")
    envs.close()


if __name__ == "__main__":
    main()
