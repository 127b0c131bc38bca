"""A policy's server that does what a test wants, in vla-eval's protocol or openpi's; nothing of `vla_train.wire` is in it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
from socket_messages import packed, unpacked
from websockets.sync.server import ServerConnection, serve

Answer = Callable[[dict[str, Any], ServerConnection], Any]
"""From an observation to actions, or bytes or text to send instead; may close the connection."""


class Heard:
    """What a server was told, by all connections."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, str, Any]] = []
        """(connection, type, payload)."""
        self.connections = 0

    def types(self, connection: int) -> list[str]:
        return [kind for number, kind, _ in self.messages if number == connection]


@contextlib.contextmanager
def vla_eval_server(answer: Answer, *, port: int = 0, hello: dict[str, Any] | None = None) -> Iterator[tuple[str, Heard]]:
    heard = Heard()

    def talk(client: ServerConnection) -> None:
        heard.connections += 1
        number = heard.connections
        for data in client:
            message = unpacked(data)
            heard.messages.append((number, message["type"], message["payload"]))
            kind, payload = "action", None
            if message["type"] == "hello":
                kind, payload = "hello", {"protocol_version": 1, "model_server": "Fake", **(hello or {})}
            elif message["type"] == "observation":
                payload = answer(message["payload"], client)
            if isinstance(payload, bytes | str):
                client.send(payload)
                continue
            if isinstance(payload, np.ndarray):
                payload = {"actions": packed(payload)}
            if payload is not None:
                if "error" in payload:
                    kind = "error"
                seq = payload.pop("seq", message["seq"])
                client.send(msgpack.packb({"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0}))

    with _serving(talk, port) as url:
        yield url, heard


@contextlib.contextmanager
def openpi_server(answer: Answer, *, metadata: dict[str, Any] | None = None) -> Iterator[tuple[str, Heard]]:
    heard = Heard()

    def talk(client: ServerConnection) -> None:
        heard.connections += 1
        number = heard.connections
        client.send(msgpack.packb(metadata or {}))
        for data in client:
            observation = unpacked(data)
            heard.messages.append((number, "observation", observation))
            payload = answer(observation, client)
            if isinstance(payload, np.ndarray):
                payload = msgpack.packb({"actions": packed(payload, keys=bytes)})
            if payload is not None:
                client.send(payload)

    with _serving(talk, 0) as url:
        yield url, heard


@contextlib.contextmanager
def kept_port() -> Iterator[int]:
    """A port for several servers, one after the other: nobody listens there in between, and nobody else is given it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextlib.contextmanager
def _serving(talk: Callable[[ServerConnection], None], port: int) -> Iterator[str]:
    def forgiving(client: ServerConnection) -> None:
        with contextlib.suppress(Exception):  # the client is gone
            talk(client)

    with serve(forgiving, "127.0.0.1", port, compression=None, reuse_port=True) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()
