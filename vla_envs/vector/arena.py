"""MuJoCo's working memory, cut to what a simulation touches.

A model says how much address space each mjData of it reserves for contacts and constraints. LIBERO's ask for 1.3 GB each, for
5,000 contacts, and touch less than 1 MB. That costs no memory, but twenty of them are more than a machine of 24 GB has, and
Linux forks no process that reserves more than there is: no ffmpeg for a video, no worker process.
"""

import ctypes

import mujoco
import numpy as np

ARENA_BYTES = 1 << 26
"""A hundred times what LIBERO's tasks were seen to touch; MuJoCo warns where it is not enough."""
_HEADER_BYTES = 2048
"""The first bytes of an mjModel: its sizes are among them, and it is longer."""


def limit_arena(model: mujoco.MjModel) -> None:
    """Let each mjData that is made of this model from now on reserve at most `ARENA_BYTES`.

    MuJoCo's Python package lets nobody set `narena`. It is followed by `nbuffer`, and no other two sizes are like these; where
    they are not found, in an unknown version, the model stays as it is.
    """
    if model.narena <= ARENA_BYTES:
        return
    sizes = np.ctypeslib.as_array((ctypes.c_int64 * (_HEADER_BYTES // 8)).from_address(model._address))
    (places,) = np.nonzero((sizes[:-1] == model.narena) & (sizes[1:] == model.nbuffer))
    if len(places) == 1:
        sizes[places[0]] = ARENA_BYTES
