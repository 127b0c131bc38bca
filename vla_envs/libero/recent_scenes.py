"""Loaded scenes: one copy per process, shared by all envs that use it, and freed with the last of them.

An env holds the scenes that its slots play. Slots go through their tasks in turn, so it also keeps the scenes played lately, up
to `KEPT_BYTES`, and no more: a scene of full detail takes a quarter of a gigabyte, and `libero_90` has ninety.
"""

import threading
from collections import OrderedDict
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import mujoco

from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene

KEPT_BYTES = 4 << 30
"""If an env's scenes take more than this, it frees those used least recently before it loads others. Copies of the textures in
OpenGL are not counted. Scenes that are asked for are kept whatever their size."""


class RecentScenes:
    """The scenes of one env.

    Args:
        suite: Name of the suite.
        detail: "full" or "fast".
        scene_dir: Folder of exported scenes, if any.
        sleep: Whether objects that lie still sleep.
    """

    def __init__(self, suite: str, detail: str, scene_dir: Path | None, *, sleep: bool = False) -> None:
        self._load = partial(shared_scene, suite, detail=detail, scene_dir=scene_dir, sleep=sleep)
        self._held: OrderedDict[int, LiberoEngineScene] = OrderedDict()
        """Task id -> scene, the least recently used first."""

    def __getitem__(self, task_id: int) -> LiberoEngineScene:
        self.load({task_id})
        return self._held[task_id]

    def load(self, task_ids: Set[int]) -> None:
        """Load the scenes of these tasks, several at once; scenes of other tasks may be freed first."""
        missing = sorted(task_ids - self._held.keys())
        for task_id in task_ids & self._held.keys():
            self._held.move_to_end(task_id)
        if not missing:
            return
        for task_id in [task_id for task_id in self._held if task_id not in task_ids]:
            if sum(mujoco.mj_sizeModel(scene.model) for scene in self._held.values()) <= KEPT_BYTES:
                break
            del self._held[task_id]
        with ThreadPoolExecutor(4) as pool:
            self._held.update(zip(missing, pool.map(self._load, missing), strict=True))

    def clear(self) -> None:
        """Free all scenes that no other env uses."""
        self._held.clear()


_shared: WeakValueDictionary[tuple, LiberoEngineScene] = WeakValueDictionary()
_shared_lock = threading.Lock()
_loading: dict[tuple, threading.Lock] = {}


def shared_scene(suite: str, task_id: int, detail: str, scene_dir: Path | None, *, sleep: bool = False) -> LiberoEngineScene:
    """The process's copy of a scene, for as long as any env uses it."""
    key = (suite, task_id, detail, scene_dir, sleep)
    with _shared_lock:
        lock = _loading.setdefault(key, threading.Lock())
    with lock:
        scene = _shared.get(key)
        if scene is None:
            loaded = load_scene(suite, task_id, detail=detail, scene_dir=scene_dir)
            scene = _shared[key] = LiberoEngineScene(loaded, sleep=sleep)
        return scene
