"""What MuJoCo in C makes of converted tasks: run where LIBERO is, read by the tests that run where Isaac Lab is.

    python tests/on_isaaclab/record_reference.py FOLDER

For each task in FOLDER it writes `FOLDER/reference_<suite>_<task id>.npz`: from stored starts an episode at rest and one of
long random pushes; after each control step what is observed, where the objects are, and whether the goal holds. And it writes
the same task into FOLDER/placed, with a start in which what the goal speaks of has been put where it belongs.
"""

import sys
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np

from vla_envs.isaac.lab.convert import names_of, starts_of
from vla_envs.isaac.lab.task_file import ConvertedTask, converted_tasks, load_task, save_task
from vla_envs.libero import goals
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.vector.cameras import drawn_cameras
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.vector.settled import SETTLING_ACTION

NUM_STEPS, NUM_PLACED_STEPS = 50, 10
IMAGE_SIZE = 256


def moving_actions(random: np.random.Generator) -> np.ndarray:
    """(50, 7): pushes of five control steps each, and the gripper now open, now closed."""
    pushes = random.uniform(-1.0, 1.0, (NUM_STEPS // 5, 7)) * [1, 1, 0.5, 0.5, 0.5, 0.5, 1]
    return np.repeat(pushes, 5, axis=0)


def resting_actions(num_steps: int) -> np.ndarray:
    """(num_steps, 7)."""
    return np.tile(SETTLING_ACTION, (num_steps, 1))


def record(task: ConvertedTask, state: np.ndarray, actions: np.ndarray) -> dict[str, np.ndarray]:
    """Play `actions` from a state; row 0 is before the first."""
    scene = shared_scene(task.suite, task.task_id, "full", None)
    engine = MujocoEngine(1, cameras=drawn_cameras(tuple(task.views), image_size=IMAGE_SIZE), num_threads=1)
    data = mujoco.MjData(scene.model)
    roots = [scene.model.body(part.root).id for part in task.parts if part.kind == "object"]

    def look() -> tuple[np.ndarray, np.ndarray]:
        data.qpos[:] = engine.get_state(0)[1 : 1 + scene.model.nq]
        mujoco.mj_kinematics(scene.model, data)
        return engine.proprioception([0])[0], data.xpos[roots].copy()

    try:
        engine.begin([0], [scene], [task.starts.mujoco_states[0]])
        engine.step([0], resting_actions(10)[None], np.array([10]), until_goal=False)  # as all starts were settled
        engine.set_state(0, state)
        engine.draw([0])
        images = {f"first_{name}": image[0] for name, image in engine.pictures().items()}
        seen, reached = [look()], []
        for action in actions:
            reached.append(bool(engine.step([0], action[None, None], np.array([1])).goal_reached[0]))
            seen.append(look())
        images |= {f"last_{name}": image[0] for name, image in engine.pictures().items()}
    finally:
        engine.close()
    felt, objects = (np.array(rows) for rows in zip(*seen, strict=True))
    episode = {"actions": actions, "proprioception": felt, "objects": objects, "reached": np.array(reached)}
    return episode | images


def placed_state(task: ConvertedTask) -> np.ndarray:
    """The first start, with what the goal speaks of put where it belongs."""
    scene = shared_scene(task.suite, task.task_id, "full", None)
    model, state = scene.model, task.starts.mujoco_states[0].copy()
    data = mujoco.MjData(model)
    qpos = state[1 : 1 + model.nq]
    for predicate in scene.scene.goal.predicates:
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        match predicate:
            case goals.JointPast():
                way = 0.01 if predicate.comparison[0] == ">" else -0.01
                qpos[list(predicate.qpos_addresses)] = predicate.threshold + way
            case goals.OnObject():
                _put(model, qpos, predicate.body, data.xpos[predicate.support] + [0.0, 0.0, 0.03])
            case goals.OnSite() | goals.InSite():
                above = 0.03 + predicate.size[2] if isinstance(predicate, goals.OnSite) else 0.0
                _put(model, qpos, predicate.body, data.site_xpos[predicate.site] + [0.0, 0.0, above])
            case goals.Lifted():
                _put(model, qpos, predicate.body, data.xpos[predicate.body] + [0.0, 0.0, 1.0])
    return state


def _put(model: mujoco.MjModel, qpos: np.ndarray, body: int, place: np.ndarray) -> None:
    first = int(model.jnt_qposadr[model.body_jntadr[body]])
    qpos[first : first + 3] = place


def main(folder: Path) -> None:
    """Record all tasks of a folder."""
    for suite, task_id in converted_tasks(folder):
        task, placed = load_task(folder, suite, task_id), folder / "placed"
        placed.mkdir(exist_ok=True)
        states = np.stack([placed_state(task), task.starts.mujoco_states[1]])
        parts = tuple(replace(part, file=f"../{part.file}") for part in task.parts)
        starts = starts_of(names_of(shared_scene(suite, task_id, "full", None).model), states)
        save_task(replace(task, folder=placed, parts=parts, starts=starts))
        episodes = {
            "rest": record(task, task.starts.mujoco_states[0], resting_actions(NUM_STEPS)),
            "moving": record(task, task.starts.mujoco_states[1], moving_actions(np.random.default_rng(0))),
            "placed": record(task, states[0], resting_actions(NUM_PLACED_STEPS)),
        }
        arrays = {f"{name}.{key}": value for name, episode in episodes.items() for key, value in episode.items()}
        np.savez_compressed(folder / f"reference_{suite}_{task_id}.npz", **arrays)
        print(f"recorded {suite} {task_id}: the goal holds after {np.flatnonzero(episodes['placed']['reached'])[:1]} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
