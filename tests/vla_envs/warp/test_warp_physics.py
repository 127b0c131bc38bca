"""Worlds on Warp against slots of MuJoCo in C, the reference, from the same states by the same actions."""

import threading
from typing import Any

import mujoco
import numpy as np
import pytest
import warp as wp
from fast_envs import BOWL_IN_DRAWER, BOWL_ON_PLATE, STOVE_AND_POT, almost_done, loaded_scene

from vla_envs.libero.engine_scene import LiberoEngineScene, LiberoPlayer
from vla_envs.vector.control import CONTROL_MODES
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.vector.robot_state import ROBOT_STATE
from vla_envs.vector.settled import SETTLING_ACTION
from vla_envs.warp.device import Replayed, WarpDevice
from vla_envs.warp.engine import WarpEngine
from vla_envs.warp.worlds import FAULTS, Worlds


def both_engines(num_slots: int, device: WarpDevice) -> tuple[WarpEngine, MujocoEngine]:
    """Without cameras."""
    warp = WarpEngine(num_slots, cameras=(), quality="fast", device=device, tensors=False)
    return warp, MujocoEngine(num_slots)


def smooth_actions(num_slots: int, num_steps: int) -> np.ndarray:
    """(N, K, 7): random motions that last, the gripper now open and now closed."""
    actions = np.random.default_rng(0).uniform(-1, 1, (num_slots, num_steps, 7))
    for step in range(1, num_steps):
        actions[:, step, :6] = 0.8 * actions[:, step - 1, :6] + 0.2 * actions[:, step, :6]
        if step % 10:
            actions[:, step, 6] = actions[:, step - 1, 6]
    return actions


def object_places(scene: LiberoEngineScene, state: np.ndarray) -> np.ndarray:
    """(objects, 3) metres: where the free objects are."""
    model = scene.model
    starts = 1 + model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    return np.stack([state[start : start + 3] for start in starts])


def test_after_thirty_control_steps_the_hand_is_where_mujoco_has_it(device: WarpDevice):
    scene, slots = loaded_scene(*STOVE_AND_POT), [0, 1, 2]
    engines = both_engines(3, device)
    for engine in engines:
        engine.begin(slots, [scene] * 3, list(scene.scene.init_states[:3]))
    actions = smooth_actions(3, 30)
    for first in range(0, 30, 10):
        limits = np.array([10, 7 if first == 0 else 10, 10])  # the second slot stands still for three steps
        played = [engine.step(slots, actions[:, first : first + 10], limits).num_steps for engine in engines]
        np.testing.assert_array_equal(*played)
        mine, theirs = (engine.proprioception(slots) for engine in engines)
        assert np.abs(mine[:, :3] - theirs[:, :3]).max() < 0.002
        assert np.abs(mine[:, 3:] - theirs[:, 3:]).max() < 0.01
        mine, theirs = ({key: read.of(engine.robot_state(slots)) for key, read in ROBOT_STATE.items()} for engine in engines)
        for key, expected in theirs.items():
            np.testing.assert_allclose(mine[key], expected, atol=0.05 if "vel" in key else 0.01, err_msg=key)
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("control", ["osc_absolute", "joint_position"])
def test_the_arm_goes_where_mujocos_goes_in_the_other_control_modes(control: str, device: WarpDevice):
    """From the same settled states, which are those of LIBERO's own controller."""
    mode, slots, scene = CONTROL_MODES[control], [0, 1], loaded_scene(*STOVE_AND_POT)
    warp = WarpEngine(2, cameras=(), quality="fast", device=device, tensors=False, control=mode)
    engines = (warp, MujocoEngine(2, law=mode.law))
    for engine in engines:
        waiting = np.broadcast_to(SETTLING_ACTION, (2, 7))
        engine.restore(slots, [scene] * 2, engine.settle(slots, [scene] * 2, list(scene.scene.init_states[:2]), waiting))
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 8, mode.action_dim))
    if control == "osc_absolute":
        actions[..., :3] = engines[1].proprioception(slots)[:, None, :3] + 0.05 * actions[..., :3]
        actions[..., 3:6] = [2.2, 2.2, 0.0] + 0.2 * actions[..., 3:6]
    for engine in engines:
        engine.step(slots, actions, np.array([8, 6]))
    before = scene.scene.init_states[:2, 1 + scene.scene.osc.arm_qpos]
    mine, theirs = (ROBOT_STATE["robot0_joint_pos"].of(engine.robot_state(slots)) for engine in engines)
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert np.abs(theirs - before).max() > 0.02
    np.testing.assert_allclose(*(engine.proprioception(slots) for engine in engines), atol=1e-4)
    for engine in engines:
        engine.close()


def test_objects_come_to_rest_where_mujoco_has_them_in_every_world(device: WarpDevice):
    """World 0 alone would not show a table that the other worlds lack."""
    scene, slots = loaded_scene(*BOWL_ON_PLATE), [0, 1, 2]
    engines = both_engines(3, device)
    for engine in engines:
        engine.begin(slots, [scene] * 3, list(scene.scene.init_states[[0, 20, 40]]))
        waiting = np.broadcast_to(SETTLING_ACTION, (3, 10, 7)).copy()
        engine.step(slots, waiting, np.full(3, 10), until_goal=False)
    for slot in slots:
        mine, theirs = (object_places(scene, engine.get_state(slot)) for engine in engines)
        assert np.abs(mine - theirs).max() < 0.001
    for engine in engines:
        engine.close()


def verdicts(scene: LiberoEngineScene, states: list[np.ndarray], device: WarpDevice) -> tuple[np.ndarray, np.ndarray]:
    """Whether the goal holds a control step after each of these states, on Warp and in MuJoCo."""
    still = np.broadcast_to(SETTLING_ACTION, (len(states), 1, 7)).copy()
    with device.turn():
        worlds = Worlds(scene, len(states))
        worlds.begin(range(len(states)), states)
        worlds.play(wp.array(still.transpose(1, 0, 2), dtype=float), wp.array(np.ones(len(states), np.int32)), until_goal=True)
        reached = worlds.reached.numpy() > 0
    player, theirs = LiberoPlayer(scene), []
    for state, action in zip(states, still, strict=True):
        player.begin(state)
        player.play(action, 1)
        theirs.append(bool(scene.judge(player.record, 1)[0]))
    return reached, np.array(theirs)


@pytest.mark.parametrize("task", [BOWL_ON_PLATE, BOWL_IN_DRAWER, STOVE_AND_POT])
def test_goals_hold_in_the_states_in_which_they_hold_in_mujoco(task: tuple[str, int], device: WarpDevice):
    """On states of falling into place: above it, touching it, at rest; contact, region, drawer and knob are needed in turn."""
    scene = loaded_scene(*task)
    start = scene.scene.init_states[0]
    drops = [almost_done(*task, start, drop_m=drop) for drop in (0.2, 0.05, 0.02, 0.01, 0.0)]
    mine, theirs = verdicts(scene, [start, *drops], device)
    assert not theirs[0]
    np.testing.assert_array_equal(mine, theirs)
    player = LiberoPlayer(scene)
    player.begin(drops[2])
    fallen = []
    for _ in range(6):
        player.play(np.broadcast_to(SETTLING_ACTION, (2, 7)).copy(), 2)
        fallen.append(player.get_state())
    mine, theirs = verdicts(scene, fallen, device)
    np.testing.assert_array_equal(mine, theirs)
    assert theirs.any()


def test_a_world_goes_on_from_what_another_has_saved(device: WarpDevice):
    scene = loaded_scene(*STOVE_AND_POT)
    warp, _ = both_engines(2, device)
    warp.begin([0, 1], [scene] * 2, list(scene.scene.init_states[:2]))
    actions = smooth_actions(1, 4).repeat(2, axis=0)
    warp.step([0], actions[:1], np.array([4]))
    warp.restore([1], [scene], warp.save([0]))
    np.testing.assert_array_equal(warp.get_state(0), warp.get_state(1))
    np.testing.assert_array_equal(*warp.proprioception([0, 1]))
    warp.step([0, 1], actions, np.array([4, 4]))
    np.testing.assert_allclose(warp.get_state(0), warp.get_state(1), atol=1e-5)
    warp.close()


def test_slots_of_different_tasks_are_simulated_each_in_its_own_scene(device: WarpDevice):
    scenes = [loaded_scene(*STOVE_AND_POT), loaded_scene(*BOWL_ON_PLATE), loaded_scene(*STOVE_AND_POT)]
    engines = both_engines(3, device)
    for engine in engines:
        engine.begin([0, 1, 2], scenes, [scene.scene.init_states[slot] for slot, scene in enumerate(scenes)])
        engine.step([2, 1], smooth_actions(2, 3), np.array([3, 2]))
        engine.begin([1], [scenes[0]], [scenes[0].scene.init_states[9]])  # the slot moves to the other scene
        engine.step([0, 1], smooth_actions(2, 2), np.array([1, 2]))
    for slot in range(3):
        np.testing.assert_allclose(*(engine.get_state(slot) for engine in engines), atol=1e-3)
    np.testing.assert_allclose(*(engine.proprioception([2, 0, 1]) for engine in engines), atol=1e-4)
    assert len(engines[0]._batches) == 1, "the scene that nobody plays is let go"
    for engine in engines:
        engine.close()


def test_a_world_that_diverges_says_so_and_harms_no_other(device: WarpDevice):
    scene = loaded_scene(*STOVE_AND_POT)
    warp, _ = both_engines(2, device)
    wild = scene.scene.init_states[0].copy()
    wild[1 + scene.model.nq :] = 1e7
    warp.begin([0, 1], [scene] * 2, [wild, scene.scene.init_states[1]])
    result = warp.step([0, 1], smooth_actions(2, 3), np.array([3, 3]))
    assert result.faults == ("the simulation diverged", "")
    assert result.num_steps[1] == 3
    assert np.isfinite(warp.get_state(0)).all()
    assert np.isfinite(warp.get_state(1)).all()
    warp.close()


@pytest.mark.parametrize(("contacts", "constraints", "fault"), [(4, 512, FAULTS[2]), (128, 16, FAULTS[3])])
def test_what_there_is_no_room_for_is_said(
    contacts: int, constraints: int, fault: str, device: WarpDevice, monkeypatch: pytest.MonkeyPatch
):
    scene = loaded_scene(*BOWL_ON_PLATE)
    monkeypatch.setattr("vla_envs.warp.worlds._room", lambda *_, **__: (contacts, constraints))
    warp, _ = both_engines(1, device)
    warp.begin([0], [scene], [scene.scene.init_states[0]])
    assert warp.step([0], smooth_actions(1, 3), np.array([3])).faults == (fault,)
    warp.close()


def test_too_many_worlds_for_the_memory_are_refused_in_a_sentence(device: WarpDevice, monkeypatch: pytest.MonkeyPatch):
    def no_memory(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("Failed to allocate 99999999999 bytes on device")

    monkeypatch.setattr("vla_envs.warp.engine.Worlds", no_memory)
    scene = loaded_scene(*STOVE_AND_POT)
    warp, _ = both_engines(3, device)
    with pytest.raises(ValueError, match=r"3 worlds do not fit into the memory of .*: make fewer slots"):
        warp.begin([0, 1, 2], [scene] * 3, list(scene.scene.init_states[:3]))
    warp.close()


def test_a_gpu_that_is_not_there_is_refused_with_the_reason():
    if wp.is_cuda_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device='cuda': there is no CUDA driver here; device='cpu' simulates on Warp's CPU"):
        WarpDevice("cuda")


def test_a_long_compilation_says_what_it_is(monkeypatch: pytest.MonkeyPatch):
    said = threading.Event()
    monkeypatch.setattr("vla_envs.warp.device._SILENCE_S", 0.0)
    monkeypatch.setattr("vla_envs.warp.device._log.warning", lambda *_: said.set())
    waited = []
    replayed = Replayed(lambda: waited.append(said.wait(60 if not waited else 0)))
    replayed()
    said.clear()
    replayed()  # nothing is compiled any more
    assert waited == [True, False]
