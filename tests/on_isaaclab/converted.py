"""Environments of converted tasks for these tests, begun in known starts and played step by step."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
import torch

from vla_envs.isaac.lab.task_file import converted_tasks

if TYPE_CHECKING:
    from vla_envs.isaac.lab.env import IsaacLabEnv

FOLDER = Path(os.environ["ISAACLAB_TASKS"])
"""Converted tasks, and what `record_reference.py` made of them."""
TASKS = list(converted_tasks(FOLDER))
"""(suite, task id) of each."""
NUM_WORLDS = 2


def name_of(task: tuple[str, int]) -> str:
    return f"{task[0]}_{task[1]}"


def make(task: tuple[str, int], *, folder: Path = FOLDER, num_envs: int = NUM_WORLDS, **options: object) -> "IsaacLabEnv":
    arguments = {"suite": task[0], "task_id": task[1], "scene_dir": folder, "device": "cpu"} | options
    return gym.make_vec("Isaac-v0", num_envs=num_envs, backend="isaaclab", **arguments)


def reference(task: tuple[str, int]) -> dict[str, np.ndarray]:
    """What MuJoCo makes of it."""
    with np.load(FOLDER / f"reference_{name_of(task)}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def begin(env: "IsaacLabEnv", start: int) -> dict[str, np.ndarray]:
    """Begin all worlds in one of the task's starts; returns what Isaac Lab observes."""
    env.isaaclab.episode_seeds = torch.full((env.num_envs,), start)
    observation, _ = env.isaaclab.reset()
    env.isaaclab.episode_seeds = None
    return {name: tensor.numpy().copy() for name, tensor in observation["policy"].items()}


def play(env: "IsaacLabEnv", actions: np.ndarray) -> dict[str, np.ndarray]:
    """(steps, N, ...): the state observed after each action, where objects are, and whether the goal is reached."""
    lab, rows = env.isaaclab, []
    for action in actions:
        everyone = torch.tensor(np.tile(action, (env.num_envs, 1)), dtype=torch.float32)
        observation, _, reached, _, _ = lab.step(everyone)
        places = torch.stack([item.data.root_link_pos_w.torch for item in lab.scene.rigid_objects.values()], dim=1)
        tensors = {"state": observation["policy"]["state"], "objects": places, "reached": reached}
        rows.append({name: tensor.numpy().copy() for name, tensor in tensors.items()})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
