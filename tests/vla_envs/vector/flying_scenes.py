"""The smallest world that can be played: one ball that flies without gravity, pushed up by the first number of its action."""

from typing import Any

import mujoco
import numpy as np

from vla_envs.vector.control import OSC_DELTA
from vla_envs.vector.engine import ACTION_DIM, EngineScene, Player
from vla_envs.vector.slot import FAULTS, GoalRecord, View, empty_record

_BALL = """
<mujoco>
  <option gravity="0 0 0" timestep="0.05"/>
  <worldbody><body><freejoint/><geom size="0.1" mass="1"/></body></worldbody>
</mujoco>
"""
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class BallScene(EngineScene):
    """The goal is to be at this height, in metres, or above."""

    def __init__(self, goal_height_m: float = np.inf) -> None:
        super().__init__(mujoco.MjModel.from_xml_string(_BALL), {})
        self.goal_height_m = goal_height_m

    def new_player(self) -> "BallPlayer":
        return BallPlayer(self)

    def judge(self, record: GoalRecord, num_steps: int) -> np.ndarray:
        return record.qpos[:num_steps, 2] >= self.goal_height_m

    def show_switches(self, on: np.ndarray) -> None:
        assert on.size == 0


class BallPlayer(Player):
    """One physics step per control step."""

    def __init__(self, scene: BallScene) -> None:
        self._model, self._data = scene.model, mujoco.MjData(scene.model)
        self.view = View(poses=np.zeros(0), switches_on=np.zeros(0, bool), proprioception=np.zeros(8), robot_state=np.zeros(48))
        self.record = empty_record(scene.model, 64, 0)

    def begin(self, state: np.ndarray) -> None:
        mujoco.mj_resetData(self._model, self._data)
        self.set_state(state)

    def play(self, actions: np.ndarray, num_steps: int, law: int = OSC_DELTA) -> int:
        for step in range(num_steps):
            self._data.qfrc_applied[2] = actions[step, 0]
            mujoco.mj_step(self._model, self._data)
            if self.fault():
                return step
            self.record.qpos[step] = self._data.qpos
            self.view.proprioception[0] = self._data.qpos[2]
        return num_steps

    def save(self) -> Any:
        saved = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, saved, _STATE)
        return saved

    def restore(self, saved: Any) -> None:
        mujoco.mj_resetData(self._model, self._data)
        mujoco.mj_setState(self._model, self._data, saved, _STATE)
        self.view.proprioception[0] = self._data.qpos[2]

    def get_state(self) -> np.ndarray:
        return np.concatenate([[self._data.time], self._data.qpos, self._data.qvel])

    def set_state(self, state: np.ndarray) -> None:
        self._data.time = state[0]
        self._data.qpos[:] = state[1 : 1 + self._model.nq]
        self._data.qvel[:] = state[1 + self._model.nq :]
        self.view.proprioception[0] = self._data.qpos[2]

    def fault(self) -> str:
        return "it flew too far" if any(self._data.warning[fault].number for fault in FAULTS) else ""


def flying(speed_m_s: float) -> np.ndarray:
    """[time, qpos, qvel] of a ball at the origin, on its way up."""
    return np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, speed_m_s, 0, 0, 0], float)


def pushes(num_slots: int, num_steps: int, force_n: float = 0.0) -> np.ndarray:
    """(n, K, 7) actions that all push alike."""
    return np.full((num_slots, num_steps, ACTION_DIM), force_n)
