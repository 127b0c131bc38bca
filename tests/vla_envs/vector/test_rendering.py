"""GL threads: every frame is drawn with its own scene, or says why not; what they hold is bounded and freed."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from small_scenes import WallScene

from vla_envs.errors import RenderingUnavailableError
from vla_envs.vector import rendering
from vla_envs.vector.gl_context import GLDevice, open_device
from vla_envs.vector.rendering import Frame, RenderPool

RED, GREEN, BLUE, GREY = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0.5)


@pytest.fixture
def pool() -> Iterator[RenderPool]:
    pool = RenderPool.acquire("cpu")
    yield pool
    pool.release()


@pytest.fixture
def pool_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[RenderPool]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    pool = RenderPool.acquire("cpu")
    yield pool
    pool.release()


def draw(pool: RenderPool, *frames: Frame) -> None:
    pool.draw(list(frames))
    for frame in frames:
        frame.done.result(timeout=60)


def assert_drawn(frame: Frame) -> None:
    assert isinstance(frame.scene, WallScene)
    np.testing.assert_allclose(frame.pixels.astype(float), np.broadcast_to(frame.scene.colour, frame.pixels.shape), atol=1)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def gl_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vla_envs-gl")]


def test_each_frame_shows_its_own_scene_at_its_own_size(pool: RenderPool):
    scenes = [WallScene(colour) for colour in (RED, GREEN, BLUE, GREY)]
    frames = [scene.frame(size) for size in (8, 40, 16) for scene in scenes for _ in range(3)]
    draw(pool, *frames)
    for frame in frames:
        assert_drawn(frame)


def test_a_picture_larger_than_mujocos_buffer_is_whole(pool: RenderPool):
    frame = WallScene(RED).frame(800)
    draw(pool, frame)
    assert_drawn(frame)


def test_one_frame_after_another_makes_no_copy_of_their_scene(pool: RenderPool):
    scene = WallScene(RED)
    for _ in range(30):
        draw(pool, scene.frame())
        assert pool.num_held == 1


def test_many_frames_at_once_are_shared_by_all_threads(pool: RenderPool):
    scene = WallScene(RED)
    draw(pool, *[scene.frame(64) for _ in range(50)])
    assert pool.num_held == len(gl_threads())


def test_no_copies_are_made_beyond_the_memory_limit(pool: RenderPool):
    scene = WallScene(RED)
    pool._memory_limit = int(1.5 * rendering._context_bytes(scene))
    frames = [scene.frame(64) for _ in range(50)]
    draw(pool, *frames)
    assert pool.num_held == 1
    for frame in frames:
        assert_drawn(frame)


def test_the_least_recently_used_scene_is_freed_for_a_new_one(pool_of_one_thread: RenderPool):
    pool = pool_of_one_thread
    red, green, blue = scenes = [WallScene(colour) for colour in (RED, GREEN, BLUE)]
    pool._memory_limit = int(2.5 * rendering._context_bytes(red))
    for scene in (red, green, red, blue):
        draw(pool, scene.frame())
    assert {holder() for holder in pool._holders} == {red, blue}
    for _ in range(3):
        for scene in scenes:
            frame = scene.frame()
            draw(pool, frame)
            assert_drawn(frame)
            assert pool.num_held == 2
    assert pool._memory_bytes == 2 * rendering._context_bytes(red)


def test_a_scene_larger_than_the_memory_limit_is_still_drawn(pool: RenderPool):
    pool._memory_limit = 0
    frames = [WallScene(colour).frame() for colour in (RED, GREEN, BLUE)]
    draw(pool, *frames)
    for frame in frames:
        assert_drawn(frame)


def test_a_scene_that_nobody_uses_any_more_is_freed_at_the_next_frame(pool: RenderPool):
    kept = WallScene(RED)
    draw(pool, *[WallScene(GREEN).frame() for _ in range(4)], kept.frame())
    gc.collect()
    draw(pool, kept.frame())
    assert eventually(lambda: pool.num_held == 1)
    assert pool._memory_bytes == rendering._context_bytes(kept)


def test_a_scene_that_cannot_be_prepared_fails_its_own_frames_only(pool: RenderPool, monkeypatch: pytest.MonkeyPatch):
    broken, whole = WallScene(RED), WallScene(GREEN)
    prepare = rendering._SceneRenderer.__init__

    def prepare_unless_broken(renderer: rendering._SceneRenderer, scene: WallScene, *, on_gpu: bool) -> None:
        if scene is broken:
            raise MemoryError("no room for its textures")
        prepare(renderer, scene, on_gpu=on_gpu)

    monkeypatch.setattr(rendering._SceneRenderer, "__init__", prepare_unless_broken)
    bad, good = broken.frame(), whole.frame()
    pool.draw([bad, good])
    with pytest.raises(MemoryError, match="textures"):
        bad.done.result(timeout=60)
    good.done.result(timeout=60)
    assert_drawn(good)
    assert pool._memory_bytes == rendering._context_bytes(whole)
    monkeypatch.undo()
    again = broken.frame()
    draw(pool, again)
    assert_drawn(again)


def test_a_context_that_cannot_be_made_fails_the_frame_and_is_tried_again(pool: RenderPool, monkeypatch: pytest.MonkeyPatch):
    def refuse(device: GLDevice) -> None:
        raise RenderingUnavailableError(f"no OpenGL context could be made on {device.renderer}")

    monkeypatch.setattr(GLDevice, "make_context", refuse)
    scene = WallScene(BLUE)
    frame = scene.frame()
    pool.draw([frame])
    with pytest.raises(RenderingUnavailableError, match="no OpenGL context"):
        frame.done.result(timeout=60)
    assert pool.num_held == 0
    monkeypatch.undo()
    again = scene.frame()
    draw(pool, again)
    assert_drawn(again)


def test_all_who_render_on_a_device_share_its_threads_until_the_last_leaves(pool: RenderPool):
    num_threads = len(gl_threads())
    auto = RenderPool.acquire("auto")
    assert (auto is pool) == (not open_device("auto").is_gpu)
    again = RenderPool.acquire("cpu")
    assert again is pool
    again.release()
    auto.release()
    assert len(gl_threads()) == num_threads
    frame = WallScene(RED).frame()
    draw(pool, frame)
    assert_drawn(frame)


def test_the_last_to_leave_ends_the_threads_and_frees_what_they_hold():
    pool = RenderPool.acquire("cpu")
    draw(pool, WallScene(RED).frame())
    pool.release()
    assert gl_threads() == []
    assert RenderPool._pools == {}
