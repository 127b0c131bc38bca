"""Whatever way an env goes, at whatever moment, it takes its threads, contexts and scenes along."""

import ctypes
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from weakref import ref

import gymnasium as gym
import numpy as np
import psutil
import pytest
from fast_envs import BOWL_ON_PLATE, loaded_scene, make_envs, random_actions

from vla_envs.errors import NotResetError
from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.rendering import Frame, RenderPool, _SceneRenderer

PROCESS = psutil.Process()
MEBIBYTE = 1 << 20


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vla_envs")]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def memory_bytes() -> int:
    """What the process holds, without what its allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return PROCESS.memory_info().rss


def used_envs(num_envs: int = 1) -> LiberoEnv:
    """Slots that draw and have played; with a single one, a single context is made."""
    envs = make_envs(num_envs, cameras=("agentview",), chunk_size=2)
    envs.reset(seed=0)
    envs.step(random_actions(envs, 1)[0])
    return envs


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert eventually(lambda: our_threads() == [])
    assert RenderPool._pools == {}


def test_close_ends_all_threads_before_it_returns_and_may_be_repeated():
    envs = used_envs(2)
    assert {name.rstrip("_0123456789") for name in our_threads()} == {"vla_envs-gl-", "vla_envs-physics"}
    envs.close()
    assert our_threads() == []
    envs.close()
    assert envs.closed


def test_the_operating_system_sees_no_thread_more_after_the_second_env_than_after_the_first():
    """OpenGL and numerical libraries keep threads of their own from their first use on."""
    used_envs().close()
    num_threads = PROCESS.num_threads()
    for _ in range(2):
        used_envs().close()
    assert eventually(lambda: PROCESS.num_threads() <= num_threads)


def test_an_env_that_was_never_reset_closes():
    make_envs(2, cameras=("agentview",)).close()
    env = gym.make("Libero-v0", task_id=0, detail="fast")
    env.close()
    assert our_threads() == []


def test_an_env_that_is_deleted_without_close_goes_in_the_background():
    envs = used_envs()
    watch = ref(envs)
    del envs
    assert watch() is None
    assert eventually(lambda: our_threads() == [])


def test_an_env_in_a_reference_cycle_may_be_collected_in_a_gl_thread(monkeypatch: pytest.MonkeyPatch):
    gc.disable()
    try:
        kept, forgotten = used_envs(), used_envs()
        forgotten.itself = forgotten
        watch = ref(forgotten)
        del forgotten
        assert watch() is not None
        draw, collected_in = _SceneRenderer.draw, []

        def collect_and_draw(renderer: _SceneRenderer, frame: Frame) -> None:
            if watch() is not None and gc.collect() and watch() is None:
                collected_in.append(threading.current_thread().name)
            draw(renderer, frame)

        monkeypatch.setattr(_SceneRenderer, "draw", collect_and_draw)
        kept.step(random_actions(kept, 1)[0])
    finally:
        gc.enable()
    assert len(collected_in) == 1
    assert collected_in[0].startswith("vla_envs-gl")
    kept.step(random_actions(kept, 1)[0])
    kept.close()


def test_closing_one_env_leaves_another_that_shares_its_scene_and_its_contexts_alone():
    closed, kept = used_envs(), used_envs()
    observation, _ = kept.reset(options={"init_state_id": 0})
    closed.close()
    again, _ = kept.reset(options={"init_state_id": 0})
    np.testing.assert_array_equal(observation["image"], again["image"])
    kept.step(random_actions(kept, 1)[0])
    kept.close()


def test_scenes_live_as_long_as_an_env_uses_them():
    first, second = (gym.make_vec("Libero-Goal-v0", num_envs=1, task_ids=[3], cameras=()) for _ in range(2))
    first.reset(seed=0)
    second.reset(seed=0)
    assert first._scenes[3] is second._scenes[3]
    scene = ref(first._scenes[3])
    first.close()
    assert scene() is not None
    second.close()
    gc.collect()
    assert scene() is None


def step_until_closed(envs: LiberoEnv, stepping: threading.Event, errors: list[str]) -> None:
    try:
        while True:
            envs.step(np.zeros(envs.action_space.shape))
            stepping.set()
    except NotResetError as error:
        errors.append(str(error))


def test_close_from_another_thread_waits_for_the_call_under_way_and_ends_the_next():
    kept = RenderPool.acquire("auto")  # so that contexts need not be made anew each time
    for delay_s in (0.0, 0.005, 0.02, 0.1):
        envs, stepping = used_envs(2), threading.Event()
        errors: list[str] = []
        thread = threading.Thread(target=step_until_closed, args=(envs, stepping, errors))
        thread.start()
        stepping.wait()
        time.sleep(delay_s)
        envs.close()
        assert not any(name.startswith("vla_envs-physics") for name in our_threads())
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert errors == ["this env is closed: make a new one"]
    kept.release()


def test_an_env_may_be_deleted_while_another_thread_steps_it():
    envs = used_envs(2)
    watch, inside, results = ref(envs), threading.Event(), []

    def step(envs: LiberoEnv) -> None:
        inside.set()
        results.append(envs.step(np.zeros((2, 2, 7)))[4]["num_steps"].tolist())

    thread = threading.Thread(target=step, args=(envs,))
    thread.start()
    inside.wait()
    del envs
    thread.join(timeout=60)
    del thread
    assert results == [[2, 2]]
    assert eventually(lambda: watch() is None)


def test_envs_in_several_threads_at_once_do_not_disturb_each_other():
    expected = used_envs(2)
    states = expected.get_state()
    expected.close()
    outcomes = []

    def live() -> None:
        for _ in range(2):
            envs = used_envs(2)
            outcomes.append(envs.get_state())
            envs.close()

    threads = [threading.Thread(target=live) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(outcomes) == 6
    for outcome in outcomes:
        for mine, theirs in zip(outcome, states, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_process_does_not_crash_at_its_end_though_its_env_is_open_and_being_stepped():
    code = """
import threading, gymnasium as gym, numpy as np
envs = gym.make_vec("Libero-v0", num_envs=2, task_ids=[0], detail="fast", image_size=32)
envs.reset(seed=0)
stepped = threading.Event()
def step_on():
    while True:
        envs.step(np.zeros((2, 7)))
        stepped.set()
threading.Thread(target=step_on, daemon=True).start()
stepped.wait()
print("end")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "end"), result.stderr
    assert "Traceback" not in result.stderr


def test_memory_stays_flat_over_a_few_cycles():
    """A context that is not freed costs 150 MB here, a simulation 2 MB, a scene 30 MB."""
    for _ in range(2):
        used_envs().close()
    before = memory_bytes()
    for _ in range(4):
        used_envs().close()
    assert memory_bytes() - before < 80 * MEBIBYTE


@pytest.mark.slow
def test_memory_and_threads_stay_flat_over_sixty_cycles():
    def cycle(number: int) -> None:
        envs = make_envs(2, cameras=("agentview",) if number % 20 == 0 else (), settle_steps=1)
        envs.reset(seed=number)
        envs.step(np.zeros(envs.action_space.shape))
        envs.close()

    def least_memory(numbers: range) -> int:
        """The least after any of these cycles: what a driver frees later comes and goes by 40 MB."""
        least = []
        for number in numbers:
            cycle(number)
            if number % 5 == 4:
                least.append(memory_bytes())
        return min(least)

    loaded_scene(*BOWL_ON_PLATE)
    cycle(0)
    threads = PROCESS.num_threads()
    least = [least_memory(range(first, first + 15)) for first in range(0, 60, 15)]
    assert eventually(lambda: PROCESS.num_threads() <= threads)
    growth = [later - earlier for earlier, later in pairwise(least)]
    assert min(growth) < 15 * MEBIBYTE, growth  # what leaks grows every time, what is loaded once does not
