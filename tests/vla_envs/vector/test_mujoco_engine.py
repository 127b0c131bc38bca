"""What the engine makes of its players: where chunks end, who is harmed by a fault, who waits for whom."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from flying_scenes import BallPlayer, BallScene, flying, pushes

from vla_envs.vector.cameras import Camera, DrawnCamera
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.vector.rendering import Frame, RenderPool

TOO_FAST = 0.99e10
"""In m/s: MuJoCo gives up where a position exceeds 1e10, after 20 steps of 0.05 s."""


@pytest.fixture
def engine() -> Iterator[MujocoEngine]:
    engine = MujocoEngine(3, num_threads=2)
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def mujocos_log_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes a file into the working directory when a simulation diverges."""
    monkeypatch.chdir(tmp_path)


def height(engine: MujocoEngine, slot: int) -> float:
    return engine.get_state(slot)[3]


def test_each_slot_plays_as_many_steps_as_it_is_asked_for(engine: MujocoEngine):
    scene = BallScene()
    engine.begin([0, 1, 2], [scene] * 3, [flying(1.0)] * 3)
    result = engine.step([0, 2], pushes(2, 8), np.array([3, 8]))
    assert result.num_steps.tolist() == [3, 8]
    assert result.goal_reached.tolist() == [False, False]
    assert result.faults == ("", "")
    assert [height(engine, slot) for slot in range(3)] == pytest.approx([0.15, 0.0, 0.4])
    np.testing.assert_allclose(engine.proprioception([2, 0])[:, 0], [0.4, 0.15])


def test_a_chunk_ends_where_its_goal_first_holds_in_exactly_the_state_of_that_step(engine: MujocoEngine):
    scene = BallScene(goal_height_m=0.2)
    engine.begin([0, 1], [scene] * 2, [flying(0.3)] * 2)
    actions = np.random.default_rng(0).uniform(0, 5, (2, 12, 7))
    actions[1] = actions[0]
    result = engine.step([0], actions[:1], np.array([12]))
    assert result.goal_reached.tolist() == [True]
    reached = int(result.num_steps[0])
    assert 1 < reached < 12
    for step in range(reached):
        alone = engine.step([1], actions[1:, step : step + 1], np.array([1]))
        assert alone.goal_reached[0] == (step == reached - 1)
    np.testing.assert_array_equal(engine.get_state(0), engine.get_state(1))
    np.testing.assert_array_equal(*engine.proprioception([0, 1]))


def test_actions_may_be_a_tensor(engine: MujocoEngine):
    torch = pytest.importorskip("torch")
    scene, actions = BallScene(), pushes(1, 4)
    engine.begin([0, 1], [scene] * 2, [flying(1.0)] * 2)
    engine.step([0], actions, np.array([4]))
    engine.step([1], torch.from_numpy(actions).float(), np.array([4]))
    np.testing.assert_allclose(engine.get_state(0), engine.get_state(1), atol=1e-6)


def test_a_goal_that_no_longer_holds_at_the_end_of_the_chunk_counts(engine: MujocoEngine):
    scene = BallScene(goal_height_m=0.2)
    engine.begin([0], [scene], [flying(2.0)])
    down = pushes(1, 15, force_n=-5.0)
    result = engine.step([0], down, np.array([15]))
    assert (result.num_steps[0], result.goal_reached[0]) == (3, True)
    engine.begin([0], [scene], [flying(2.0)])
    engine.step([0], down, np.array([15]), until_goal=False)
    assert height(engine, 0) < 0.2


def test_a_chunk_without_goals_is_played_through(engine: MujocoEngine):
    engine.begin([0], [BallScene(goal_height_m=-1.0)], [flying(1.0)])
    result = engine.step([0], pushes(1, 5), np.array([5]), until_goal=False)
    assert (result.num_steps[0], result.goal_reached[0]) == (5, False)
    result = engine.step([0], pushes(1, 5), np.array([5]))
    assert (result.num_steps[0], result.goal_reached[0]) == (1, True)


def test_a_fault_ends_its_own_slot_with_the_step_in_which_it_came(engine: MujocoEngine):
    scene = BallScene()
    engine.begin([0, 1, 2], [scene] * 3, [flying(1.0), flying(TOO_FAST), flying(-1.0)])
    result = engine.step([0, 1, 2], pushes(3, 10), np.full(3, 10))
    assert result.faults == ("", "", "")
    result = engine.step([0, 1, 2], pushes(3, 30), np.full(3, 30))
    assert result.faults == ("", "it flew too far", "")
    assert result.num_steps[0] == result.num_steps[2] == 30
    assert 10 <= result.num_steps[1] <= 13
    assert [height(engine, slot) for slot in (0, 2)] == pytest.approx([2.0, -2.0])
    assert engine.proprioception([1])[0, 0] > 0.9e10, "what is seen is the last state before the fault"


def test_a_goal_that_was_reached_before_a_fault_counts(engine: MujocoEngine):
    engine.begin([0], [BallScene(goal_height_m=0.6e10)], [flying(TOO_FAST)])
    result = engine.step([0], pushes(1, 40), np.array([40]))
    assert result.goal_reached.tolist() == [True]
    assert result.faults == ("",)
    assert result.num_steps[0] == 13
    assert height(engine, 0) == pytest.approx(13 * 0.05 * TOO_FAST)


def test_slots_hold_one_player_each_and_no_scene_that_they_do_not_play(engine: MujocoEngine, monkeypatch: pytest.MonkeyPatch):
    players: WeakSet[BallPlayer] = WeakSet()
    scenes: WeakSet[BallScene] = WeakSet()
    new_player = BallScene.new_player

    def watched(scene: BallScene) -> BallPlayer:
        scenes.add(scene)
        players.add(player := new_player(scene))
        return player

    monkeypatch.setattr(BallScene, "new_player", watched)
    for episode in range(6):
        engine.begin([0, 1, 2], [BallScene()] * 3, [flying(1.0 + slot) for slot in range(3)])
        engine.begin([0, 1, 2], [engine._scenes[0]] * 3, [flying(1.0 + slot) for slot in range(3)])
        assert (len(players), len(scenes)) == (3, 1)
        engine.step([0, 1, 2], pushes(3, 2), np.full(3, 2))
        assert [height(engine, slot) for slot in range(3)] == pytest.approx([0.1, 0.2, 0.3]), episode
    engine.close()
    assert (len(players), len(scenes)) == (0, 0)


def test_an_error_in_one_slot_is_raised_when_the_others_have_ended(engine: MujocoEngine, monkeypatch: pytest.MonkeyPatch):
    fine, broken = BallScene(), BallScene()
    engine.begin([0, 1, 2], [fine, broken, fine], [flying(1.0)] * 3)
    play, ended = BallPlayer.play, []

    def play_slowly(player: BallPlayer, actions: np.ndarray, num_steps: int, law: int) -> int:
        if player._model is broken.model:
            raise RuntimeError("the ball burst")
        time.sleep(0.2)
        ended.append(player)
        return play(player, actions, num_steps, law)

    monkeypatch.setattr(BallPlayer, "play", play_slowly)
    with pytest.raises(RuntimeError, match="the ball burst"):
        engine.step([0, 1, 2], pushes(3, 4), np.full(3, 4))
    assert len(ended) == 2
    assert [height(engine, slot) for slot in (0, 2)] == pytest.approx([0.2, 0.2])


def test_an_interrupt_waits_for_players_before_it_is_raised(engine: MujocoEngine, monkeypatch: pytest.MonkeyPatch):
    engine.begin([0, 1], [BallScene()] * 2, [flying(1.0)] * 2)
    play, running = BallPlayer.play, threading.Semaphore(0)
    ended = []

    def play_slowly(player: BallPlayer, actions: np.ndarray, num_steps: int, law: int) -> int:
        running.release()
        time.sleep(0.5)
        ended.append(player)
        return play(player, actions, num_steps, law)

    def interrupt() -> None:
        running.acquire()
        running.acquire()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setattr(BallPlayer, "play", play_slowly)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        engine.step([0, 1], pushes(2, 4), np.full(2, 4))
    interrupter.join()
    assert len(ended) == 2


def test_an_interrupt_while_work_is_handed_out_waits_for_what_has_begun(engine: MujocoEngine, monkeypatch: pytest.MonkeyPatch):
    engine.begin([0, 1, 2], [BallScene()] * 3, [flying(1.0)] * 3)
    play, submit, begun, ended = BallPlayer.play, engine._workers.submit, threading.Semaphore(0), []

    def play_slowly(player: BallPlayer, actions: np.ndarray, num_steps: int, law: int) -> int:
        begun.release()
        time.sleep(0.2)
        completed = play(player, actions, num_steps, law)
        ended.append(player)
        return completed

    def interrupted(*work: Any) -> None:
        submit(*work)
        begun.acquire()
        raise KeyboardInterrupt

    monkeypatch.setattr(BallPlayer, "play", play_slowly)
    monkeypatch.setattr(engine._workers, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step([0, 1, 2], pushes(3, 4), np.full(3, 4))
    assert len(ended) == 1
    monkeypatch.undo()
    engine.begin([0, 1, 2], [BallScene()] * 3, [flying(1.0)] * 3)
    assert engine.step([0, 1, 2], pushes(3, 4), np.full(3, 4)).num_steps.tolist() == [4, 4, 4]


def test_close_waits_for_a_step_in_another_thread_and_may_be_repeated(engine: MujocoEngine, monkeypatch: pytest.MonkeyPatch):
    engine.begin([0, 1], [BallScene()] * 2, [flying(1.0)] * 2)
    play, running = BallPlayer.play, threading.Event()
    results = []

    def play_slowly(player: BallPlayer, actions: np.ndarray, num_steps: int, law: int) -> int:
        running.set()
        time.sleep(0.3)
        return play(player, actions, num_steps, law)

    monkeypatch.setattr(BallPlayer, "play", play_slowly)
    stepping = threading.Thread(target=lambda: results.append(engine.step([0, 1], pushes(2, 4), np.full(2, 4))))
    stepping.start()
    running.wait()
    engine.close()
    engine.close()
    stepping.join()
    assert results[0].num_steps.tolist() == [4, 4]
    assert not any(thread.name.startswith("vla_envs-physics") for thread in threading.enumerate())


def test_an_engine_has_no_more_threads_than_slots_or_than_it_is_given():
    for num_slots, num_threads, most in ((4, 2, 2), (1, 8, 1), (2, 8, 2)):
        engine = MujocoEngine(num_slots, num_threads=num_threads)
        slots = list(range(num_slots))
        engine.begin(slots, [BallScene()] * num_slots, [flying(1.0)] * num_slots)
        for _ in range(3):
            engine.step(slots, pushes(num_slots, 2), np.full(num_slots, 2))
        assert sum(thread.name.startswith("vla_envs-physics") for thread in threading.enumerate()) <= most
        engine.close()


def test_a_step_is_divided_between_playing_and_drawing_as_the_time_of_their_threads_was(monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def play(self: BallPlayer, actions: np.ndarray, num_steps: int, law: int = 0) -> int:
        nonlocal now
        now += 3.0
        return num_steps

    class InstantPool:
        def draw(self, frames: list[Frame]) -> None:
            for frame in frames:
                frame.done.set_result(1.0)

        def release(self) -> None: ...

    monkeypatch.setattr(BallPlayer, "play", play)
    monkeypatch.setattr(RenderPool, "acquire", lambda device: InstantPool())
    monkeypatch.setattr("vla_envs.vector.mujoco_engine.check_device", lambda device: None)
    monkeypatch.setattr("vla_envs.vector.mujoco_engine.time", SimpleNamespace(perf_counter=lambda: now))
    camera = DrawnCamera(name="own", height=4, width=4, own=Camera(name="own", position=(0, 0, 1), quaternion=(1, 0, 0, 0)))
    engine = MujocoEngine(2, cameras=[camera], num_threads=1)
    engine.begin([0, 1], [BallScene()] * 2, [flying(0.0)] * 2)
    engine.step([0], pushes(1, 1), np.array([1]), draw=False)
    assert (engine.render_span, now) == (None, 3.0)
    engine.step([0, 1], pushes(2, 1), np.array([1, 1]))
    assert engine.render_span == (9.0 - 6.0 * 2 / 8, 9.0), "two pictures of 1 s beside two chunks of 3 s"
    engine.close()
