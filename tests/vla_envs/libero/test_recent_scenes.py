"""An env holds the scenes of its slots and those it has played lately, not those of all tasks it ever played."""

from weakref import WeakSet

import mujoco
import pytest
from fast_envs import BOWL_ON_PLATE, loaded_scene

from vla_envs.libero import recent_scenes
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.env import LiberoEnv


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Task ids in the order in which they are loaded; all look like one, and scenes of two fit into what may be kept."""
    scene, order = loaded_scene(*BOWL_ON_PLATE).scene, []

    def load(suite: str, task_id: int, *, detail: str, scene_dir: None, sleep: bool) -> LiberoEngineScene:
        order.append(task_id)
        alive.add(copy := LiberoEngineScene(scene))
        return copy

    alive.clear()
    monkeypatch.setattr(recent_scenes, "shared_scene", load)
    monkeypatch.setattr(recent_scenes, "KEPT_BYTES", int(2.5 * mujoco.mj_sizeModel(scene.model)))
    return order


alive: WeakSet[LiberoEngineScene] = WeakSet()


def test_scenes_that_nobody_plays_are_let_go(loaded: list[int]):
    envs = LiberoEnv(2, detail="fast", image_size=32)
    for first in range(0, 10, 2):
        envs.reset(options={"task_id": [first, first + 1]})
        assert len(alive) <= 6, "those of the slots, the last two and the new ones"
    assert loaded == list(range(10))
    envs.close()
    assert len(alive) == 0


def test_scenes_played_lately_are_not_loaded_again(loaded: list[int]):
    envs = LiberoEnv(1, detail="fast", cameras=())
    for task_id in (0, 1, 0, 2, 0, 3, 0, 1):
        envs.reset(options={"task_id": task_id})
    assert loaded == [0, 1, 2, 3, 1]
    envs.close()


def test_a_reset_of_more_tasks_than_may_be_kept_loads_each_once(loaded: list[int]):
    envs = LiberoEnv(6, detail="fast", cameras=())
    envs.reset(options={"task_id": list(range(6))})
    assert sorted(loaded) == list(range(6))
    envs.reset(options={"task_id": 0})
    assert sorted(loaded) == list(range(6))
    envs.close()
