"""Scenes of one coloured wall before a camera: real models and real pixels, drawn in a few milliseconds."""

import mujoco
import numpy as np

from vla_envs.vector.engine import EngineScene, Player
from vla_envs.vector.rendering import Frame
from vla_envs.vector.slot import POSES, GoalRecord, View

_WALL = """
<mujoco>
  <visual>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/>
  </visual>
  <worldbody>
    <camera name="front" pos="0 -1 0" xyaxes="1 0 0 0 0 1"/>
    <geom type="box" size="5 .1 5" pos="0 1 0" group="1" rgba="{red} {green} {blue} 1"/>
  </worldbody>
</mujoco>
"""


class WallScene(EngineScene):
    """Something to look at; it cannot be played."""

    def __init__(self, colour: tuple[float, float, float]) -> None:
        red, green, blue = colour
        model = mujoco.MjModel.from_xml_string(_WALL.format(red=red, green=green, blue=blue))
        super().__init__(model, {"front": 0})
        self.colour = np.array(colour) * 255
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        poses = np.concatenate([getattr(data, name).ravel() for name in POSES])
        self.view = View(poses=poses, switches_on=np.zeros(0, bool), proprioception=np.zeros(8), robot_state=np.zeros(48))

    def new_player(self) -> Player:
        raise AssertionError("a wall does not play")

    def judge(self, record: GoalRecord, num_steps: int) -> np.ndarray:
        raise AssertionError("a wall has no goal")

    def show_switches(self, on: np.ndarray) -> None:
        assert on.size == 0

    def frame(self, size: int = 16) -> Frame:
        """A picture still to be drawn."""
        return Frame(scene=self, view=self.view, camera=0, pixels=np.zeros((size, size, 3), np.uint8))
