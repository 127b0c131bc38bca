"""How starts are settled where many cost as much as one: in rounds of all worlds, beside those that are being played."""

from collections.abc import Iterator

import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, loaded_scene
from gymnasium.vector import AutoresetMode

from vla_envs.isaac.env import IsaacEnv
from vla_envs.libero.env import LiberoEnv
from vla_envs.warp.device import WarpDevice
from vla_envs.warp.worlds import Worlds

SUITE, TASK = BOWL_ON_PLATE


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many starts were settled together, each time."""
    settled: list[int] = []
    settle = Worlds.settle

    def counted(worlds: Worlds, states: list[np.ndarray], actions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        settled.append(len(states))
        return settle(worlds, states, actions)

    monkeypatch.setattr(Worlds, "settle", counted)
    return settled


def make_libero(num_envs: int, device: WarpDevice) -> LiberoEnv:
    options = {"detail": "fast", "cameras": (), "settle_steps": 1, "autoreset_mode": AutoresetMode.DISABLED}
    where = "cuda" if device.is_gpu else "cpu"
    return LiberoEnv(num_envs, suite=SUITE, task_id=TASK, engine="warp", device=where, **options)


@pytest.fixture
def libero(device: WarpDevice) -> Iterator[LiberoEnv]:
    """Four slots of one task."""
    loaded_scene(SUITE, TASK)
    envs = make_libero(4, device)
    yield envs
    envs.close()


def begin(envs: LiberoEnv, slots: list[int], init_state_ids: list[int]) -> None:
    mask, chosen = np.zeros(4, bool), np.zeros(4, int)
    mask[slots], chosen[slots] = True, init_state_ids
    envs.reset(options={"reset_mask": mask, "init_state_id": chosen})


def test_states_of_the_task_are_settled_along_as_far_as_there_are_worlds(libero: LiberoEnv, rounds: list[int]):
    begin(libero, [0, 1, 2, 3], [0, 1, 2, 9])
    begin(libero, [1], [40])
    assert rounds == [4, 4]  # 40, and the next three: 3, 4, 5
    for slots, states in (([0, 1, 2, 3], [3, 4, 5, 40]), ([2], [9])):
        begin(libero, slots, states)
    assert rounds == [4, 4]
    begin(libero, [3], [6])
    assert rounds == [4, 4, 4]


def test_a_start_that_was_settled_along_is_the_one_that_is_settled_by_itself(libero: LiberoEnv, device: WarpDevice):
    begin(libero, [0, 1, 2, 3], [7, 7, 7, 7])  # takes 0, 1 and 2 along
    begin(libero, [2], [1])
    along = libero.get_state()[2]
    twin = make_libero(1, device)
    twin.reset(options={"init_state_id": 1})
    np.testing.assert_allclose(along, twin.get_state()[0], atol=1e-4)
    twin.close()


def test_equal_seeds_begin_where_they_do_on_mujoco(device: WarpDevice):
    scene = loaded_scene(SUITE, TASK)
    options = {"suite": SUITE, "task_id": TASK, "detail": "fast", "cameras": (), "settle_steps": 1, "num_starts": 20}
    qpos = []
    for backend in ("warp", "mujoco"):
        envs = IsaacEnv(3, backend=backend, device="cuda" if device.is_gpu else "cpu", **options)
        envs.reset(seed=4)
        qpos.append(np.array(envs.get_state())[:, 1 : 1 + scene.model.nq])
        envs.close()
    np.testing.assert_allclose(*qpos, atol=1e-3)
