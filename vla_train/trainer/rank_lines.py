"""TCP lines from rank 0 to each other rank, and messages on them: JSON, one a line; nothing that comes through is run."""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from vla_train.errors import RunError

_JOIN_S = 60.0
_SEND_S = 10.0

Message = dict[str, Any]


class RankLostError(RunError):
    """Another rank is gone, and the others cannot go on without it."""


def open_lines(rank: int, size: int, share: Callable[[Any], list[Any]]) -> dict[int, socket.socket]:
    """Lines by the rank at their other end: on rank 0 to each other one, elsewhere to rank 0. All ranks must call this.

    Args:
        rank: This one.
        size: How many there are.
        share: Gives every rank's value, by rank.

    Raises:
        RankLostError: Rank 0 cannot be reached, or a rank does not come.
    """
    if rank == 0:
        dualstack = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dualstack else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dualstack) as server:
            secret = secrets.token_hex(16)
            share((socket.gethostname(), server.getsockname()[1], secret))
            return _accept(server, size, secret)
    host, port, secret = share(None)[0]
    line = _reach((os.environ.get("MASTER_ADDR", host), host), port)
    send(line, {"rank": rank, "secret": secret})
    return {0: line}


def _reach(hosts: tuple[str, ...], port: int) -> socket.socket:
    for host in hosts:
        try:
            line = socket.create_connection((host, port), timeout=_JOIN_S)
        except OSError as error:
            failure = error
        else:
            line.settimeout(_SEND_S)
            return line
    raise RankLostError(f"rank 0 cannot be reached at {' or '.join(hosts)}, port {port} ({failure}): let ranks connect")


def _accept(server: socket.socket, size: int, secret: str) -> dict[int, socket.socket]:
    """The lines of all other ranks; who does not know the secret is sent away."""
    lines: dict[int, socket.socket] = {}
    until = time.monotonic() + _JOIN_S
    while len(lines) < size - 1:
        server.settimeout(max(0.1, until - time.monotonic()))
        try:
            line, _ = server.accept()
        except TimeoutError:
            missing = sorted(set(range(1, size)) - set(lines))
            raise RankLostError(f"ranks {missing} did not join within {_JOIN_S:g} s: let ranks connect") from None
        line.settimeout(_SEND_S)
        try:
            with line.makefile("rb", buffering=0) as reader:
                greeting = json.loads(reader.readline(1000))
            known = greeting["secret"] == secret
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if known:
            lines[greeting["rank"]] = line
        else:
            line.close()
    return lines


def send(line: socket.socket, message: Message) -> None:
    """Raises OSError where the line has ended."""
    line.sendall(json.dumps(message).encode() + b"\n")


def read_messages(line: socket.socket) -> Iterator[list[Message] | None]:
    """What each look at a line that can be read brings; None where it has ended."""
    rest = b""
    while True:
        try:
            data = line.recv(65536)
            *complete, rest = (rest + data).split(b"\n")
            messages = [json.loads(text) for text in complete]
        except (OSError, ValueError):
            data = b""
        yield messages if data else None
