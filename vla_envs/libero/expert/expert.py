"""A scripted expert for one slot: looks at the slot's privileged view, and says the next action."""

from collections.abc import Callable

import numpy as np

from vla_envs.errors import NotResetError
from vla_envs.libero.expert.motion import towards
from vla_envs.libero.expert.plan import make_skill
from vla_envs.libero.privileged import PrivilegedView

_MEMORY = 0.7
"""Correlation of the noise of one step with that of the next."""


class Expert:
    """Acts in one slot through the same seven actions as a policy.

    It decides from the present state alone, so whatever happened before, it goes on from there. What it draws when it is made
    (where exactly to approach, how fast) stays for its life: make another one for another episode.

    Args:
        look: Returns the slot's privileged view.
        noise: Standard deviation of what is added to translation and rotation, in units of actions; correlated over a few
            steps.
        seed: Of what it draws and of the noise; None: fresh ones.

    Raises:
        UnsupportedTaskError: It cannot do this task.
        ValueError: `noise` is not in 0..1.
    """

    def __init__(self, look: Callable[[], PrivilegedView], *, noise: float = 0.0, seed: int | None = None) -> None:
        if not 0 <= noise <= 1:
            raise ValueError(f"noise must be in 0..1, got {noise}")
        self._look, self._noise = look, noise
        self._rng = np.random.default_rng(seed)
        view = look()
        self._geometry = view.geometry
        self._skill = make_skill(view, self._rng)
        self._disturbance = np.zeros(6)
        self.intended = np.zeros(7)
        """(7,) float64: the last action without its noise, which is what a policy should learn there."""

    def act(self) -> np.ndarray:
        """(7,) float64 in [-1, 1]: the action for the control step that comes. To be called once before each.

        Raises:
            NotResetError: The slot plays another task by now.
        """
        view = self._look()
        if view.geometry is not self._geometry:
            raise NotResetError(f"this expert was made for another task than {view.instruction!r}: make a new one after reset")
        self.intended = np.clip(towards(view, self._skill.decide(view)), -1.0, 1.0)
        fresh = self._rng.normal(size=6)
        self._disturbance = _MEMORY * self._disturbance + np.sqrt(1 - _MEMORY**2) * self._noise * fresh
        action = self.intended.copy()
        action[:6] = np.clip(action[:6] + self._disturbance, -1.0, 1.0)
        return action
