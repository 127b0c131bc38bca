"""Where places on bodies are in every world, as MuJoCo has computed them last."""

from collections.abc import Sequence

import numpy as np
import warp as wp

from vla_envs.isaac.lab.physics import SolverNames, SubstepSolver
from vla_envs.isaac.lab.task_file import Frame

wp.set_module_options({"enable_backward": False})


class Frames:
    """F places in N worlds.

    Args:
        solver: Whose bodies they are on.
        frames: The places.
    """

    def __init__(self, solver: SubstepSolver, frames: Sequence[Frame]) -> None:
        names = SolverNames(solver)
        self._solver = solver
        self._bodies = wp.array([names.body(frame.body) for frame in frames], dtype=int)
        self._positions = wp.array(np.array([frame.position for frame in frames]), dtype=wp.vec3)
        self._orientations = wp.array(np.array([frame.orientation for frame in frames]), dtype=wp.quat)
        shape = (solver.mjw_data.nworld, len(frames))
        self.xpos = wp.zeros(shape, dtype=wp.vec3)
        """(N, F) metres, in the world's frame."""
        self.xmat = wp.zeros(shape, dtype=wp.mat33)
        """(N, F)."""

    def update(self) -> None:
        """From the poses of bodies in `mjw_data`."""
        data = self._solver.mjw_data
        wp.launch(
            _place,
            dim=self.xpos.shape,
            inputs=[self._bodies, self._positions, self._orientations, data.xpos, data.xquat],
            outputs=[self.xpos, self.xmat],
        )


@wp.kernel
def _place(
    bodies: wp.array[int],
    positions: wp.array[wp.vec3],
    orientations: wp.array[wp.quat],
    body_positions: wp.array2d[wp.vec3],
    body_quaternions: wp.array2d[wp.quat],
    xpos: wp.array2d[wp.vec3],
    xmat: wp.array2d[wp.mat33],
):
    world, frame = wp.tid()
    body = bodies[frame]
    wxyz = body_quaternions[world, body]  # MuJoCo's order
    turn = wp.quat(wxyz[1], wxyz[2], wxyz[3], wxyz[0])
    xpos[world, frame] = body_positions[world, body] + wp.quat_rotate(turn, positions[frame])
    xmat[world, frame] = wp.quat_to_matrix(turn * orientations[frame])
