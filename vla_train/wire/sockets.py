"""WebSockets, for both ends; the one module that knows the library.

No compression, since pictures are sent as they are or compressed already. No keep-alive pings either: a policy may hold the
interpreter for longer than their time-out, and whoever waits has a time-out of its own.
"""

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from vla_train.wire.packing import INSTALL, MAX_BYTES

HEALTH_PATHS = ("/health", "/healthz")
"""As vla-eval and openpi have them."""


class ConnectionLostError(ConnectionError):
    """The other side went away; the text says how."""


class Socket:
    """One connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def address(self) -> str:
        """Of the other side."""
        found = self._connection.remote_address
        return "somebody" if not found else f"{found[0]}:{found[1]}"

    async def send(self, message: bytes | str) -> None:
        """Raises: ConnectionLostError."""
        with _losses():
            await self._connection.send(message)

    async def receive(self) -> bytes | str:
        """Raises: ConnectionLostError."""
        with _losses():
            return await self._connection.recv()

    async def close(self) -> None:
        """Say goodbye, and wait for the answer a second at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connection.close(), 1.0)


async def connect(url: str, *, timeout_s: float) -> Socket:
    """Open a connection to a server.

    Raises:
        ConnectionLostError: There is nobody, or nobody who speaks WebSocket.
        ImportError: The library is missing.
    """
    require_websockets()
    from websockets.asyncio.client import connect as open_connection
    from websockets.exceptions import WebSocketException

    try:
        return Socket(
            await asyncio.wait_for(
                open_connection(url, compression=None, max_size=MAX_BYTES, ping_interval=None, close_timeout=1, proxy=None),
                timeout_s,
            )
        )
    except TimeoutError:
        raise ConnectionLostError(f"no connection within {timeout_s:g} s") from None
    except OSError as error:
        raise ConnectionLostError(_reason(error)) from None
    except (WebSocketException, ValueError) as error:
        raise ConnectionLostError(f"{type(error).__name__}: {error}") from None


@contextlib.asynccontextmanager
async def listening(
    place: socket.socket, handle: Callable[[Socket], Awaitable[None]], *, health: Callable[[], Mapping[str, Any]]
) -> AsyncIterator[None]:
    """Serve while the block runs; afterwards every connection is closed as "going away".

    Args:
        place: A bound socket; only now do clients get through to it.
        handle: Talks with one client until it is gone, whatever happens.
        health: What `GET /health` tells, as JSON.
    """
    require_websockets()
    from websockets.asyncio.server import serve

    def answer_http(connection: Any, request: Any) -> Any:
        if request.path not in HEALTH_PATHS:
            return None  # a WebSocket's handshake
        response = connection.respond(HTTPStatus.OK, json.dumps(dict(health())) + "\n")
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    async def talk(connection: Any) -> None:
        await handle(Socket(connection))

    async with serve(
        talk,
        sock=place,
        process_request=answer_http,
        compression=None,
        max_size=MAX_BYTES,
        ping_interval=None,
        close_timeout=1,
    ):
        yield


def _reason(error: OSError) -> str:
    """In words. Those of a name that is not found or of TLS have numbers of their own, which are none of the system's."""
    if error.errno is None or isinstance(error, socket.gaierror | ssl.SSLError):
        return str(error)
    return os.strerror(error.errno)


@contextlib.contextmanager
def _losses() -> Any:
    from websockets.exceptions import ConnectionClosed

    try:
        yield
    except ConnectionClosed as error:
        closed = error.rcvd
        reason = f"closed with code {closed.code} {closed.reason}".strip() if closed else "the connection broke off"
        raise ConnectionLostError(reason) from None


def require_websockets() -> None:
    """Raises: ImportError: The library is missing; the message says what to install."""
    try:
        import websockets  # noqa: F401
    except ImportError as error:
        raise ImportError(f"policies over a socket need websockets: {INSTALL}") from error
