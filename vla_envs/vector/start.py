"""Where an episode of one slot begins: what a vector env asks its benchmark for, and gives to the engine."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from vla_envs.vector.engine import EngineScene
from vla_envs.vector.look import Look


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where an episode begins."""

    scene: EngineScene
    state: np.ndarray
    """[time, qpos, qvel]."""
    task_id: int
    init_state_id: int
    """Stored initial state of the benchmark; -1 for a state of its own."""
    instruction: str
    key: Hashable
    """Equal for equal starts of an env, which are then settled and drawn once; says nothing of `look`."""
    look: Look | None = None
    """How the episode looks; None: as the scene does."""
