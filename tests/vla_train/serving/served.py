"""A server in a thread, a policy for it, and a small client of the tests' own, which knows nothing of `vla_train.wire`."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
from socket_messages import packed, picture, unpacked
from websockets.sync.client import connect

from vla_train.config import PolicyConfig
from vla_train.serving.config import ServeConfig
from vla_train.serving.server import PolicyServer
from vla_train.types import EnvDescription, Observation, PolicyOutput

TIMEOUT_S = 20.0
BAD_IMAGE = 255
"""A policy call that sees a picture all of this fails."""


class GoneError(BaseException):
    """What no fault boundary takes."""


class TellingPolicy:
    """Its actions tell what it saw: the image's mean, the length of the instruction, the number of the action in its chunk."""

    chunk_size = 4
    action_dim = 7
    num_uniforms = 1
    version = 0

    def __init__(self, keys: tuple[str, ...], *, call_s: float = 0.0) -> None:
        self.observation_keys = keys
        self.batches: list[int] = []
        self.call_s = call_s
        self.called = threading.Event()
        self.wrong = ""
        """How it answers wrongly, or "gone"."""
        self.closed = 0

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        self.called.set()
        time.sleep(self.call_s)
        rows = len(observation)
        actions = np.zeros((rows, self.chunk_size, self.action_dim), np.float32)
        means = observation["image"].reshape(rows, -1).mean(axis=1)
        if (means == BAD_IMAGE).any():
            raise ValueError("too bright")
        self.batches.append(rows)
        actions[..., 0] = means[:, None] / 255
        actions[..., 1] = np.array([len(text) for text in observation.instructions])[:, None]
        actions[..., 2] = np.arange(self.chunk_size)
        if uniforms is not None:
            actions[..., 3] = uniforms
        if "state" in observation.arrays:
            actions[..., 4] = observation["state"][:, :1]
        if self.wrong == "gone":
            raise GoneError
        actions = {"too few": actions[:-1], "short": actions[:, :1], "NaN": actions * np.nan}.get(self.wrong, actions)
        return PolicyOutput(actions=actions, decision={}, policy_version=0)

    def close(self) -> None:
        self.closed += 1


POLICIES: list[TellingPolicy] = []
"""Built by the factories below, the last one last."""


def telling(config: PolicyConfig, env: EnvDescription, *, seed: int) -> TellingPolicy:
    keys = tuple(config.kwargs.get("keys", "image,instruction").split(","))
    POLICIES.append(TellingPolicy(keys, call_s=float(config.kwargs.get("call_s", 0))))
    POLICIES[-1].action_dim = int(config.kwargs.get("action_dim", 7))
    return POLICIES[-1]


def served_config(protocol: str, *, kwargs: dict[str, str] | None = None, **changes: Any) -> ServeConfig:
    policy = PolicyConfig(factory=f"{__name__}:telling", kwargs=kwargs or {})
    return ServeConfig(**{"checkpoint": "x", "protocol": protocol, "port": 0, "policy": policy, **changes})


@contextlib.contextmanager
def serving(config: ServeConfig) -> Iterator[str]:
    """A server in a thread; gives its address, and ends it."""
    server = PolicyServer(config)
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(ended),))
    thread.start()
    try:
        yield wait_for(server)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "the server does not end"
        loop.close()


def wait_for(server: PolicyServer) -> str:
    """The address of a server, once it is open."""
    for _ in range(round(TIMEOUT_S / 0.02)):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port)).close()
            return f"ws://127.0.0.1:{server.port}"
        time.sleep(0.02)
    raise TimeoutError("the server does not open")


class VlaEvalClient:
    """What vla-eval's client says, word by word."""

    def __init__(self, url: str) -> None:
        self.socket = connect(url, compression=None, proxy=None)
        self.seq = 0

    def say(self, kind: str, payload: Any) -> None:
        self.seq += 1
        self.socket.send(msgpack.packb({"type": kind, "payload": payload, "seq": self.seq, "timestamp": 0.0}))

    def hear(self) -> tuple[str, Any]:
        answer = unpacked(self.socket.recv(TIMEOUT_S))
        assert answer["seq"] in (self.seq, 0)
        return answer["type"], answer["payload"]

    def start(self, **recording: str) -> None:
        self.say("episode_start", {"task": {"name": "go"}, **({"recording": recording} if recording else {})})

    def ask(self, value: int, text: str = "go", **more: Any) -> tuple[str, Any]:
        self.say("observation", {"images": {"agentview": packed(picture(value))}, "task_description": text, **more})
        return self.hear()

    def action(self, value: int, text: str = "go", **more: Any) -> np.ndarray:
        kind, payload = self.ask(value, text, **more)
        assert kind == "action", payload
        return payload["actions"]

    def error(self, value: int = 0) -> str:
        kind, payload = self.ask(value)
        assert kind == "error"
        return payload["error"]
