"""Pictures within a chunk: which slots give them, and how a step's info shows them.

Invariant: what is filmed changes nothing else. A slot that is not filmed is drawn once per chunk, as if nobody were.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_envs.vector.cameras import DrawnCamera
from vla_envs.vector.engine import Engine
from vla_envs.vector.infos import with_masks
from vla_envs.vector.options import check_integer
from vla_envs.vector.spaces import image_key


class Filming:
    """What a vector env with an engine gives of the time within a chunk."""

    num_envs: int
    _cameras: Mapping[str, DrawnCamera]
    _engine: Engine
    _busy: threading.RLock
    _render_every: tuple[int | None, ...]

    @property
    def render_every(self) -> tuple[int | None, ...]:
        """N: every so many control steps a slot gives a frame within its chunks; None: it gives none.

        `set_attr` sets it: one value for all slots, or one each.
        """
        return self._render_every

    @render_every.setter
    def render_every(self, every: Sequence[int | None]) -> None:
        for count in every:
            if count is not None:
                check_integer("render_every", count, least=1)
                if self.frames_key is None:
                    why = "Warp draws all slots together, once per chunk" if self._cameras else "it has no camera"
                    raise ValueError(f"this env gives no frames within a chunk ({why}): render_every must be None, got {count}")
        self._render_every = tuple(every)

    @property
    def frames_key(self) -> str | None:
        """Key of the observation whose camera `render` and `info["frames"]` show; None: there can be no frames."""
        return image_key(next(iter(self._cameras))) if self._cameras and self._engine.films else None

    def _filmed(self, slots: Sequence[int]) -> dict[int, int]:
        """Of these slots those that are filmed, and every how many control steps."""
        return {slot: every for slot in slots if (every := self._render_every[slot]) is not None}


def frames_info(frames: Mapping[int, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """The info about the filmed slots in `mask`, (N,) bool; empty where nothing was filmed.

    Args:
        frames: By slot, (F, H, W, 3), as the engine gives them.
    """
    if not frames:
        return {}
    upright = np.full(len(mask), None, dtype=object)
    for slot, pictures in frames.items():
        upright[slot] = np.ascontiguousarray(pictures[:, :, ::-1])  # as `render` gives them
    return with_masks({"frames": upright}, mask & np.isin(np.arange(len(mask)), list(frames)))
