"""A policy's server, as clients find it: answers, sessions, refusals, the end."""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import numpy as np
import pytest
from served import BAD_IMAGE, POLICIES, TIMEOUT_S, GoneError, VlaEvalClient, served_config, serving, wait_for
from socket_messages import packed, picture, unpacked
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from vla_train.serving.server import PolicyServer


def test_a_vla_eval_client_gets_an_action_for_each_observation_and_a_new_chunk_with_each_episode():
    with serving(served_config("vla-eval", kwargs={"keys": "image,state,instruction"})) as url:
        client = VlaEvalClient(url)
        client.say("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        kind, hello = client.hear()
        assert (kind, hello["protocol_version"]) == ("hello", 1)
        assert hello["observation_params"] == {"env_seed": 0, "send_state": True, "quat_no_antipodal": True}
        assert hello["action_spec"]["gripper"]["format"] == "binary_close_positive"
        states = packed(np.arange(8, dtype=np.float64) + 0.5)
        client.start()
        played = [client.action(51 * step, states=states) for step in range(6)]
        assert all(action.shape == (7,) and action.dtype == np.float32 for action in played)
        # Of one decision are the first four, of the next one the others.
        assert [tuple(np.round(action[[0, 2, 4]], 2)) for action in played] == [
            *((0.0, step, 0.5) for step in range(4)),
            *((np.float32(0.8), step, 0.5) for step in range(2)),
        ]
        client.say("episode_end", {"metrics": {"success": False}})
        client.start()
        assert client.action(255 - 51, states=states)[2] == 0


def test_clients_share_policy_calls_and_each_gets_its_own_answer():
    with serving(served_config("vla-eval", max_wait_s=5.0)) as url, ThreadPoolExecutor(3) as pool:
        clients = [VlaEvalClient(url) for _ in range(3)]
        for client in clients:
            client.start()
        texts = ["a", "bb", "ccc"]
        for _ in range(2):
            asked = list(pool.map(lambda number: clients[number].action(51 * number, texts[number]), range(3)))
            assert [(rounded(action[0]), action[1]) for action in asked] == [(0.0, 1), (0.2, 2), (0.4, 3)]
            for client in clients:
                client.start()
        assert POLICIES[-1].batches == [3, 3]


def rounded(number: np.float32) -> float:
    return round(float(number), 3)


def test_images_of_different_sizes_are_decided_all_the_same():
    with serving(served_config("openpi", max_wait_s=5.0)) as url, ThreadPoolExecutor(2) as pool:
        sockets = [connect(url, proxy=None) for _ in range(2)]
        assert [unpacked(each.recv())["chunk_size"] for each in sockets] == [4, 4]

        def ask(number: int) -> Any:
            image = packed(picture(51 * number, size=8 + number), keys=bytes)
            sockets[number].send(msgpack.packb({"observation/image": image, "prompt": "go"}))
            return unpacked(sockets[number].recv(TIMEOUT_S))

        answers = list(pool.map(ask, range(2)))
        assert [answer["actions"].shape for answer in answers] == [(4, 7), (4, 7)]
        assert [rounded(answer["actions"][0, 0]) for answer in answers] == [0.0, 0.2]


WRONG: dict[str, tuple[Any, str]] = {
    "not msgpack": (b"\xc1", "not msgpack"),
    "a text": ("hello", "a binary message is wanted"),
    "no map": (msgpack.packb([1]), "a message must be a map, got list"),
    "no type": (msgpack.packb({"payload": {}, "seq": 1}), "must have type"),
    "an unknown type": (msgpack.packb({"type": "reset", "payload": {}, "seq": 1}), "got 'reset'"),
    "the server's word": (msgpack.packb({"type": "action", "payload": {}, "seq": 1}), "is what the server sends"),
    "another version": (msgpack.packb({"type": "hello", "payload": {"protocol_version": 2}, "seq": 1}), "protocol_version 2"),
}


def test_a_wrong_message_is_refused_with_its_reason_and_nobody_is_disturbed():
    with serving(served_config("vla-eval")) as url:
        other, client = VlaEvalClient(url), VlaEvalClient(url)
        other.start()
        other.action(0)
        for name, (message, reason) in WRONG.items():
            client.socket.send(message)
            answer = unpacked(client.socket.recv(TIMEOUT_S))
            assert answer["type"] == "error", name
            assert reason in answer["payload"]["error"], name
        assert "no episode was started" in client.error()
        client.start()
        wrong = {
            "images must be": {"images": 3},
            "images.agentview must be an array (H, W, 3) of uint8, got nothing": {"images": {"wrist": packed(picture(0))}},
            "got float32 (8, 8, 3)": {"images": {"agentview": packed(picture(0).astype(np.float32))}},
            "got uint8 (8, 8)": {"images": {"agentview": packed(picture(0)[..., 0])}},
            "not what it says": {"images": {"agentview": {**packed(picture(0)), "shape": [900, 900, 3]}}},
            "dtype object": {"images": {"agentview": {**packed(picture(0)), "dtype": "O"}}},
            "task_description must be a text, got nothing": {"task_description": None},
        }
        for reason, part in wrong.items():
            kind, payload = client.ask(0, **part)
            assert kind == "error", reason
            assert reason in payload["error"].replace("must have images", "images must be")
        assert [other.action(0)[2], client.action(0)[2]] == [1, 0]


def test_openpi_clients_are_refused_by_a_text_and_can_go_on():
    with serving(served_config("openpi", kwargs={"keys": "image,state,instruction"})) as url:
        client = connect(url, proxy=None)
        assert unpacked(client.recv(TIMEOUT_S))["reads"] == ["observation/image", "observation/state"]
        image = packed(picture(51), keys=bytes)
        client.send(msgpack.packb({"observation/image": image, "prompt": "go"}))
        refused = client.recv(TIMEOUT_S)
        assert refused == "an observation must have observation/state, got observation/image, prompt"
        state = packed(np.full(8, np.nan), keys=bytes)
        client.send(msgpack.packb({"observation/image": image, "observation/state": state, "prompt": "go"}))
        assert "observation/state contain NaN" in str(client.recv(TIMEOUT_S))
        state = packed(np.full(8, 0.25), keys=bytes)
        client.send(msgpack.packb({"observation/image": image, "observation/state": state, "prompt": "go"}))
        actions = unpacked(client.recv(TIMEOUT_S))["actions"]
        assert actions.shape == (4, 7)
        assert [rounded(number) for number in actions[0, [0, 4]]] == [0.2, 0.25]


def test_two_clients_cannot_play_one_episode_until_the_first_is_gone():
    with serving(served_config("vla-eval")) as url:
        first, second = VlaEvalClient(url), VlaEvalClient(url)
        first.start(eid="e1", sid="s")
        assert first.action(0)[2] == 0
        second.start(eid="e1", sid="s")
        assert "another client plays episode e1" in second.error()
        assert "another client plays episode e1" in second.error()  # one answer for each question
        assert first.action(0)[2] == 1
        first.socket.close()
        for _ in range(100):  # the server hears of it a little later
            second.start(eid="e1", sid="s")
            if second.ask(0)[0] == "action":
                break
        assert second.action(0)[2] == 1


def test_where_the_policy_fails_for_one_row_the_others_of_its_call_are_answered():
    with serving(served_config("vla-eval", max_wait_s=5.0)) as url, ThreadPoolExecutor(2) as pool:
        clients = [VlaEvalClient(url) for _ in range(2)]
        for client in clients:
            client.start()
        (good, _), (bad, reason) = pool.map(lambda pair: pair[0].ask(pair[1]), zip(clients, (0, BAD_IMAGE), strict=True))
        assert (good, bad) == ("action", "error")
        assert reason["error"] == "the policy failed: ValueError: too bright"


def test_health_is_told_to_whoever_asks():
    with serving(served_config("openpi")) as url:
        for path in ("/health", "/healthz"):
            with urllib.request.urlopen(url.replace("ws", "http") + path, timeout=TIMEOUT_S) as answer:
                told = json.load(answer)
            assert (told["status"], told["protocol"], told["clients"]) == ("ok", "openpi", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_clients_are_told(number: signal.Signals):
    server = PolicyServer(served_config("vla-eval", kwargs={"call_s": "0.3"}))
    own = signal.signal(signal.SIGTERM, lambda *_: None)  # as libraries have theirs, Ray for one
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    seen: list[Any] = []

    def play() -> None:
        client = VlaEvalClient(wait_for(server))
        client.start()
        client.say("observation", {"images": {"agentview": packed(picture(0))}, "task_description": "go"})
        POLICIES[-1].called.wait(TIMEOUT_S)
        interrupt.set()  # while the policy decides
        try:
            while True:
                seen.append(client.hear())
        except ConnectionClosed as closed:
            seen.append(closed.rcvd.code if closed.rcvd else None)

    interrupt = threading.Event()
    threading.Thread(target=lambda: (interrupt.wait(TIMEOUT_S), os.kill(os.getpid(), number))).start()
    thread = threading.Thread(target=play)
    thread.start()
    server.run()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert seen[-1] == 1001  # going away
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    signal.signal(signal.SIGTERM, own)


def test_what_cannot_be_served_is_refused_before_anybody_comes():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ValueError, match=r"port \d+ of 127.0.0.1 cannot be had"),
    ):
        PolicyServer(served_config("openpi", port=taken.getsockname()[1]))
    with pytest.raises(ValueError, match="reads 'robot0_joint_pos', which clients of openpi do not send"):
        PolicyServer(served_config("openpi", kwargs={"keys": "robot0_joint_pos"}))
    with pytest.raises(ValueError, match="decides actions of 2 numbers, vla-eval clients play LIBERO's 7"):
        PolicyServer(served_config("vla-eval", kwargs={"action_dim": "2"}))


def test_a_sampled_policy_draws_by_client_episode_and_decision():
    with serving(served_config("openpi", temperature=1.0)) as url:
        client = connect(url, proxy=None)
        client.recv(TIMEOUT_S)
        drawn = []
        for _ in range(3):
            client.send(msgpack.packb({"observation/image": packed(picture(0)), "prompt": "go"}))
            drawn.append(unpacked(client.recv(TIMEOUT_S))["actions"][0, 3])
        assert len(set(drawn)) == 3


@pytest.mark.parametrize("library", ["msgpack", "websockets"])
def test_a_library_that_is_missing_is_named_with_what_brings_it(library: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"need {library}: pip install 'vla-train\[serve\]'"):
        PolicyServer(served_config("openpi"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("too few", r"actions must have shape (1, 4, 7), got (0, 4, 7)"),
        ("short", r"actions must have shape (1, 4, 7), got (1, 1, 7)"),
        ("NaN", "actions contain NaN or infinity"),
    ],
)
def test_a_wrong_answer_of_the_policy_reaches_no_client_and_the_next_is_served(wrong: str, reason: str):
    with serving(served_config("vla-eval")) as url:
        client = VlaEvalClient(url)
        client.start()
        POLICIES[-1].wrong = wrong
        assert reason in client.error()
        POLICIES[-1].wrong = ""
        assert client.action(0)[2] == 0


def test_a_server_whose_policy_cannot_decide_any_more_ends():
    server = PolicyServer(served_config("vla-eval"))
    POLICIES[-1].wrong = "gone"
    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(lambda: asyncio.run(server.serve(asyncio.Event())))
        client = VlaEvalClient(wait_for(server))
        client.start()
        client.say("observation", {"images": {"agentview": packed(picture(0))}, "task_description": "go"})
        with pytest.raises(GoneError):
            served.result(TIMEOUT_S)
    assert POLICIES[-1].closed == 1


def test_a_policy_is_closed_once_it_has_decided_for_the_last_time():
    with serving(served_config("vla-eval")) as url:
        client = VlaEvalClient(url)
        client.start()
        client.action(0)
        assert POLICIES[-1].closed == 0
    assert POLICIES[-1].closed == 1
    with pytest.raises(ValueError, match="which clients of openpi do not send"):
        PolicyServer(served_config("openpi", kwargs={"keys": "robot0_joint_pos"}))
    assert POLICIES[-1].closed == 1
