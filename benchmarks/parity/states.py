"""Physics against LIBERO's: the same initial state and the same random actions, step by step."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.parity.stock import begin_stock, switch_cameras
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.scene import Scene

SHORT, LONG = 20, 100
"""Control steps after which states are compared."""
POSITION_TOLERANCE, END_EFFECTOR_TOLERANCE_MM = 1e-4, 2.0
_NUDGE = 1e-9
"""How far every joint is moved, in m or rad, to see how sensitive LIBERO's own physics is."""


@dataclass(frozen=True, kw_only=True)
class StateComparison:
    """Largest differences between one episode of LIBERO and the same one here."""

    joints: float
    """Arm joints after 20 control steps, in rad."""
    positions: float
    """All of qpos after 20 control steps, in m, rad or as quaternion."""
    proprioception: float
    """Over the first 20 control steps, against LIBERO's observables."""
    end_effector_mm: float
    """After 100 control steps."""
    num_verdicts_different: int
    """Control steps, of the first 20, on which only one side says that the goal holds."""
    chaos_positions: float | None = None
    """As `positions`, but between LIBERO and LIBERO with every joint moved by a nanometre or nanoradian; None: not asked."""
    chaos_end_effector_mm: float | None = None
    """The same for `end_effector_mm`."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What is compared of `LONG` control steps."""

    states: np.ndarray
    """(LONG, 1 + nq + nv)."""
    proprioception: np.ndarray
    """(LONG, 8)."""
    end_effector: np.ndarray
    """(LONG, 3) in m."""
    successes: np.ndarray
    """(LONG,) bool."""


def compare_states(scene: Scene, stock: Any, *, seed: int) -> StateComparison:
    """Play one random episode on both sides.

    Args:
        scene: The task, compiled.
        stock: LIBERO's env of it (`stock.make_stock`); its cameras are switched off.
        seed: Of the actions, and of which initial state is taken.
    """
    start, actions = random_episode(scene, seed)
    theirs = play_stock(stock, scene, start, actions)
    result = differences(scene, play_here(scene, start, actions), theirs)
    if result.positions <= POSITION_TOLERANCE and result.end_effector_mm <= END_EFFECTOR_TOLERANCE_MM:
        return result
    nudge = np.zeros_like(start)
    nudge[1 : 1 + scene.model.nq] = np.random.default_rng(seed).uniform(-_NUDGE, _NUDGE, scene.model.nq)
    chaos = differences(scene, play_stock(stock, scene, start + nudge, actions), theirs)
    return replace(result, chaos_positions=chaos.positions, chaos_end_effector_mm=chaos.end_effector_mm)


def random_episode(scene: Scene, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One of the benchmark's initial states, and actions (LONG, 7) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    return scene.init_states[rng.integers(len(scene.init_states))], rng.uniform(-1, 1, (LONG, 7))


def play_stock(stock: Any, scene: Scene, start: np.ndarray, actions: np.ndarray) -> Episode:
    """Play an episode in LIBERO, without pictures."""
    switch_cameras(stock, on=False)
    begin_stock(stock, scene, start)
    states, proprioception, end_effector, successes = [], [], [], []
    for action in actions:
        observation, _, success, _ = stock.step(action)
        states.append(stock.get_sim_state())
        proprioception.append(stock_proprioception(observation))
        end_effector.append(stock.sim.data.site_xpos[scene.osc.grip_site].copy())
        successes.append(bool(success))
    return Episode(
        states=np.array(states),
        proprioception=np.array(proprioception),
        end_effector=np.array(end_effector),
        successes=np.array(successes),
    )


def play_here(scene: Scene, start: np.ndarray, actions: np.ndarray) -> Episode:
    """Play the same episode natively."""
    engine_scene = LiberoEngineScene(scene)
    player = engine_scene.new_player()
    player.begin(start)
    states, proprioception, end_effector, successes = [], [], [], []
    for action in actions:
        player.play(action[None], 1)
        states.append(player.get_state())
        proprioception.append(player.view.proprioception.copy())
        end_effector.append(player.record.site_xpos[0, scene.osc.grip_site].copy())
        successes.append(bool(engine_scene.judge(player.record, 1)[0]))
    return Episode(
        states=np.array(states),
        proprioception=np.array(proprioception),
        end_effector=np.array(end_effector),
        successes=np.array(successes),
    )


def differences(scene: Scene, ours: Episode, theirs: Episode) -> StateComparison:
    """Compare two episodes of the same start and actions."""
    at_short = np.abs(ours.states[SHORT - 1] - theirs.states[SHORT - 1])
    short = slice(SHORT)
    return StateComparison(
        joints=float(at_short[1 + scene.osc.arm_qpos].max()),
        positions=float(at_short[1 : 1 + scene.model.nq].max()),
        proprioception=float(np.abs(ours.proprioception[short] - theirs.proprioception[short]).max()),
        end_effector_mm=float(1000 * np.linalg.norm(ours.end_effector[-1] - theirs.end_effector[-1])),
        num_verdicts_different=int((ours.successes[short] != theirs.successes[short]).sum()),
    )


def stock_proprioception(observation: dict[str, Any]) -> np.ndarray:
    """(8,): LIBERO's observables as policies are given them, the end effector's quaternion as axis-angle."""
    from robosuite.utils.transform_utils import quat2axisangle

    rotation = quat2axisangle(observation["robot0_eef_quat"].copy())
    return np.concatenate([observation["robot0_eef_pos"], rotation, observation["robot0_gripper_qpos"]])
