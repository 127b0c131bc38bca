"""A policy that somebody else serves: what is sent, and what happens when the server is late, wrong, or gone."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import msgpack
import numpy as np
import pytest
from fake_server import Heard, kept_port, openpi_server, vla_eval_server
from PIL import Image

from vla_train.config import PolicyConfig
from vla_train.errors import RunError
from vla_train.policy.remote import slot
from vla_train.policy.remote.policy import RemotePolicy, build_policy, check_options
from vla_train.types import ArraySpec, EnvDescription, Observation, Place
from vla_train.wire.sockets import ConnectionLostError, Socket, connect

A = 7
STATE = np.array([0.1, 0.2, 0.3, 0.0, 4.0, 0.0, 0.02, -0.02], np.float32)
"""A hand that is turned by 4 rad: by more than half a turn."""


def env(**changes: Any) -> EnvDescription:
    picture = ArraySpec((32, 32, 3), "uint8")
    defaults = {
        "observations": {"image": picture, "wrist_image": picture, "state": ArraySpec((8,), "float32")},
        "action_low": np.full(A, -1, np.float32),
        "action_high": np.full(A, 1, np.float32),
        "suite": "libero_10",
        "simulation": {"control": "osc_delta"},
    }
    return EnvDescription(**{**defaults, **changes})


def config(url: str, *, chunk_size: int = 2, **kwargs: str) -> PolicyConfig:
    return PolicyConfig(
        factory="remote", url=url, chunk_size=chunk_size, kwargs={"connect_s": "10", "timeout_s": "10", **kwargs}
    )


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def remote(closing: ExitStack):
    def make(url: str, *, env: EnvDescription = env(), **options: Any) -> RemotePolicy:  # noqa: B008
        policy = build_policy(config(url, **options), env, seed=0)
        closing.callback(policy.close)
        return policy

    return make


def seen(*episodes: int, decision: int = 0) -> Observation:
    """One row of each slot, in these episodes; pictures tell the slot."""
    rows = len(episodes)
    pictures = np.arange(rows, dtype=np.uint8)[:, None, None, None] + np.zeros((rows, 32, 32, 3), np.uint8)
    return Observation(
        arrays={"image": pictures, "wrist_image": pictures + 100, "state": np.tile(STATE, (rows, 1))},
        instructions=("open the drawer",) * rows,
        places=tuple(Place(slot=slot, episode=episode, decision=decision) for slot, episode in enumerate(episodes)),
    )


def chunk(value: float, *, length: int = 3) -> np.ndarray:
    return np.full((length, A), value, np.float32)


def act(policy: RemotePolicy, observation: Observation) -> np.ndarray:
    return policy.act(observation, uniforms=None, temperature=1.0).actions


def test_a_batch_is_in_flight_together_and_each_slot_is_a_session(remote):
    together = threading.Barrier(3)

    def answer(observation: dict[str, Any], _: Any) -> np.ndarray:
        together.wait(10)  # nobody is answered before all have asked
        return chunk(observation["images"]["agentview"][0, 0, 0] / 10)

    with vla_eval_server(answer) as (url, heard):
        policy = remote(url)
        assert policy.observation_keys == ("image", "instruction")
        actions = act(policy, seen(0, 1, 2))
        assert actions.shape == (3, 2, A)
        np.testing.assert_allclose(actions[:, 0, 0], [0, 0.1, 0.2], atol=1e-6)
        act(policy, seen(0, 1, 5, decision=1))  # the third slot plays its next episode
        policy.close()
    told = ["hello", "episode_start", "observation", "observation", "episode_end"]
    again = ["hello", "episode_start", "observation", "episode_end", "episode_start", "observation", "episode_end"]
    played = sorted(heard.types(number) for number in range(1, 5))
    assert played == sorted([["hello"], told, told, again])
    assert [payload["task"] for _, kind, payload in heard.messages if kind == "episode_start"] == 4 * [
        {"name": "open the drawer", "suite": "libero_10"}
    ]


def test_a_vla_eval_server_is_sent_what_it_asks_for_and_its_gripper_is_played_by_its_sign(remote):
    asked: list[dict[str, Any]] = []

    def answer(observation: dict[str, Any], _: Any) -> dict[str, Any]:
        asked.append(observation)
        return {"actions": [0.5] * (A - 1) + [-0.01]}

    for params in ({"send_wrist_image": True, "send_state": True}, {"send_state": True, "quat_no_antipodal": True}):
        with vla_eval_server(answer, hello={"observation_params": params}) as (url, _):
            actions = act(remote(url, chunk_size=1, image_size="16"), seen(0))
        np.testing.assert_array_equal(actions, [[[0.5] * (A - 1) + [-1]]])
    assert set(asked[0]["images"]) == {"agentview", "wrist"}
    assert asked[0]["images"]["wrist"].shape == (16, 16, 3)
    assert asked[0]["images"]["wrist"][0, 0, 0] == 100
    # The same rotation by half a turn at most: 4 rad about y are 2 pi - 4 about -y.
    np.testing.assert_allclose(asked[0]["states"], [*STATE[:4], 4 - 2 * np.pi, *STATE[5:]], rtol=1e-6)
    assert set(asked[1]["images"]) == {"agentview"}
    np.testing.assert_array_equal(asked[1]["states"], STATE)
    assert asked[1]["task_description"] == "open the drawer"


def test_an_openpi_server_is_sent_what_its_libero_client_sends(remote):
    asked: list[dict[str, Any]] = []

    def answer(observation: dict[str, Any], _: Any) -> np.ndarray:
        asked.append(observation)
        return chunk(-0.01, length=10).astype(np.float64)

    with openpi_server(answer) as (url, _):
        policy = remote(url, protocol="openpi", chunk_size=5)
        assert policy.observation_keys == ("image", "wrist_image", "state", "instruction")
        noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
        observation = seen(0)
        actions = act(policy, Observation(**{**vars_of(observation), "arrays": {**observation.arrays, "image": noise}}))
    np.testing.assert_array_equal(actions, np.full((1, 5, A), -0.01, np.float32))  # as they are, the gripper too
    assert set(asked[0]) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    expected = np.asarray(Image.fromarray(noise[0]).resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(asked[0]["observation/image"], expected)
    np.testing.assert_array_equal(asked[0]["observation/state"], STATE.astype(np.float64))
    assert asked[0]["observation/state"].dtype == np.float64


def vars_of(observation: Observation) -> dict[str, Any]:
    return {name: getattr(observation, name) for name in ("arrays", "instructions", "places")}


GIVEN_UP = threading.Event()
"""Set when the client of a server that is late has ended."""


def late(_: dict[str, Any], __: Any) -> np.ndarray:
    GIVEN_UP.wait(20)
    return chunk(0)


WRONG: dict[str, tuple[Any, str]] = {
    "late": (late, "gave no answer within 0.3 s"),
    "not at all": (lambda *_: None, "gave no answer within 0.3 s"),
    "NaN": (lambda *_: chunk(np.nan), "answered wrongly: actions contain NaN or infinity"),
    "six numbers": (lambda *_: chunk(0)[:, :6], r"actions must have shape \(7,\) or \(N, 7\), got \(3, 6\)"),
    "too few": (lambda *_: chunk(0, length=1), "1 of 2 actions: set policy.chunk_size"),
    "no actions": (lambda *_: {"moves": 1}, "actions are missing"),
    "a text": (lambda *_: {"actions": "left"}, "actions must be numbers, got str 'left'"),
    "no message": (lambda *_: b"\xc1", "answered wrongly: not msgpack"),
    "another's answer": (lambda *_: {"actions": [0.0] * A, "seq": 1}, "are two clients in one episode"),
    "a refusal": (lambda *_: {"error": "out of memory"}, "refused: out of memory"),
    "goodbye": (lambda _, socket: socket.close(), "broke off 3 times at the same observation"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_server_that_answers_late_or_wrongly_ends_the_evaluation_in_one_line(case: str, remote):
    answer, reason = WRONG[case]
    GIVEN_UP.clear()
    with vla_eval_server(answer) as (url, _):
        policy = remote(url, **({"timeout_s": "0.3"} if "no answer" in reason else {}))
        try:
            with pytest.raises(RunError, match=f"^{url} .*({reason})") as caught:
                act(policy, seen(0, 1))
        finally:
            GIVEN_UP.set()
        assert "\n" not in str(caught.value)
        policy.close()


def test_of_an_openpi_servers_traceback_the_error_is_told(remote):
    traceback = "Traceback (most recent call last):\n  File ...\nKeyError: 'observation/joint'\n"
    with openpi_server(lambda *_: traceback) as (url, _):
        policy = remote(url, protocol="openpi")
        with pytest.raises(RunError, match=r"refused: KeyError: 'observation/joint'$"):
            act(policy, seen(0))


def test_a_server_that_dies_in_an_episode_and_comes_back_goes_on_with_it(
    remote, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    missed, back = threading.Event(), threading.Event()

    async def connect_and_tell(url: str, *, timeout_s: float) -> Socket:
        try:
            return await connect(url, timeout_s=timeout_s)
        except ConnectionLostError:
            missed.set()
            raise

    def come_back(port: int) -> Heard:
        missed.wait(10)
        with vla_eval_server(lambda *_: chunk(0.2), port=port) as (_, heard):
            back.wait(10)
        return heard

    monkeypatch.setattr(slot, "connect", connect_and_tell)
    with kept_port() as port, ThreadPoolExecutor(1) as thread:
        with vla_eval_server(lambda *_: chunk(0.1), port=port) as (url, _):
            policy = remote(url)
            act(policy, seen(0, 1))
        heard = thread.submit(come_back, port)
        try:
            np.testing.assert_allclose(act(policy, seen(0, 1, decision=1))[..., :6], 0.2, atol=1e-6)
        finally:
            back.set()
        told = heard.result()
    assert missed.is_set()
    assert sorted(told.types(1) + told.types(2)) == sorted(2 * ["hello", "episode_start", "observation"])
    assert "2 connections broke off" in caplog.text


def test_a_server_that_dies_for_good_ends_the_evaluation_in_one_line(remote):
    with kept_port() as port:
        with vla_eval_server(lambda *_: chunk(0.1), port=port) as (url, _):
            policy = remote(url, connect_s="0.3")
            act(policy, seen(0))
        with pytest.raises(RunError, match=r"cannot be reached: .*after 0.3 s \(policy.kwargs connect_s\)"):
            act(policy, seen(0, decision=1))


def test_whoever_is_not_there_or_speaks_something_else_is_refused_before_anything_starts():
    with vla_eval_server(lambda *_: None) as (url, _):
        with pytest.raises(ValueError, match=r"did not greet within 0.3 s; does it speak vla-eval"):
            check_options(config(url, protocol="openpi", connect_s="0.3"))
        check_options(config(url))
    with openpi_server(lambda *_: None) as (url, _), pytest.raises(ValueError, match=r"is no vla-eval server.*protocol=openpi"):
        check_options(config(url))
    with kept_port() as port, pytest.raises(ValueError, match="cannot be reached"):
        check_options(config(f"ws://127.0.0.1:{port}", connect_s="0.3"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "localhost:8000"}, "must be ws://HOST:PORT"),
        ({"url": "http://localhost"}, "must be ws://HOST:PORT"),
        ({"kwargs": {"protocol": "grpc"}}, "must be vla-eval or openpi, got 'grpc'"),
        ({"kwargs": {"timeout_s": "0"}}, "timeout_s must be a number of seconds above 0, got '0'"),
        ({"kwargs": {"image_size": "big"}}, "image_size must be a number of pixels"),
        ({"kwargs": {"retries": "3"}}, "are protocol, timeout_s, connect_s, image_size, got retries"),
        ({"dtype": "float32"}, "policy.dtype says nothing to policy.factory remote"),
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        check_options(PolicyConfig(**{"factory": "remote", "url": "ws://localhost:8000", **changes}))


@pytest.mark.parametrize(
    ("hello", "control", "reason"),
    [
        ({"observation_params": {"absolute_action": True}}, "osc_delta", "set --env.kwargs control=osc_absolute"),
        ({}, "joint_position", "set --env.kwargs control=osc_delta"),
        ({"action_spec": {"gripper": {"format": "binary_close_negative"}}}, "osc_delta", "gripper as binary_close_negative"),
        ({"action_spec": {"rotation": {"format": "euler_xyz"}}}, "osc_delta", "rotation as euler_xyz"),
    ],
)
def test_a_server_whose_actions_mean_something_else_is_refused(hello: dict[str, Any], control: str, reason: str, remote):
    with vla_eval_server(lambda *_: chunk(0), hello=hello) as (url, _), pytest.raises(ValueError, match=reason):
        remote(url, env=env(simulation={"control": control}))


def test_a_message_of_the_wrong_type_is_an_error(remote):
    wrong = msgpack.packb({"type": "episode_end", "payload": {}, "seq": 3})
    with vla_eval_server(lambda *_: wrong) as (url, _):
        policy = remote(url)
        with pytest.raises(RunError, match="action was to come, got episode_end"):
            act(policy, seen(0))


@pytest.mark.parametrize("answer", [[1, 2], 3, None])
def test_an_openpi_answer_that_is_no_map_is_an_error(answer: Any, remote):
    with openpi_server(lambda *_: msgpack.packb(answer)) as (url, _):
        policy = remote(url, protocol="openpi")
        with pytest.raises(RunError, match=r"a map with actions was to come, got (list|int|NoneType)$"):
            act(policy, seen(0))


@pytest.mark.parametrize("params", [{"send_state": [1]}, {"quat_no_antipodal": "no"}, [], "all"])
def test_a_hello_that_says_what_cannot_be_is_refused(params: Any, remote):
    refused = pytest.raises(RunError, match=r"is no vla-eval server: .*(must be true or false|must have maps)")
    with vla_eval_server(lambda *_: chunk(0), hello={"observation_params": params}) as (url, _), refused:
        remote(url)
