"""The server: its socket, its clients, its end.

The port is taken before the policy is loaded, so that a taken one is an error at once, and opened after it: who gets an answer
from `GET /health` can play. Ctrl-C and SIGTERM let the policy finish its call and close each connection, which is told "going
away".
"""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from vla_train.policy.base import Policy
from vla_train.policy.factory import policy_factory
from vla_train.run.named_checkpoint import absolute_checkpoint
from vla_train.serving.batching import Batcher
from vla_train.serving.config import ServeConfig
from vla_train.serving.sessions import OpenpiSession, OpenSession, VlaEvalSession
from vla_train.types import IMAGE, INSTRUCTION, ArraySpec, EnvDescription
from vla_train.wire.packing import WireError, require_msgpack
from vla_train.wire.reading import STATE, STATE_SIZE, WRIST
from vla_train.wire.sockets import ConnectionLostError, Socket, listening, require_websockets

_log = logging.getLogger(__name__)
_IMAGE = ArraySpec((256, 256, 3), "uint8")
LIBERO = EnvDescription(
    observations={IMAGE: _IMAGE, WRIST: _IMAGE, STATE: ArraySpec((STATE_SIZE,), "float32")},
    action_low=np.full(7, -1, np.float32),
    action_high=np.full(7, 1, np.float32),
)
"""What clients play, as both protocols have it; no simulator is asked."""


class PolicyServer:
    """A policy, loaded, and a port, taken; `run` serves.

    Args:
        config: Which policy, and how.

    Raises:
        ValueError: There is no such checkpoint, it does not play LIBERO's actions, it reads what no client sends, or the port
            is taken.
        ImportError: A library is missing; the message says what to install.
    """

    def __init__(self, config: ServeConfig) -> None:
        require_msgpack()
        require_websockets()
        self.config = config
        self.name = absolute_checkpoint(config.checkpoint)
        policy_config = replace(config.policy, checkpoint=self.name, lora_rank=0, random_weights=False)
        build_policy = policy_factory(policy_config)
        with ExitStack() as undo:
            self._place = _take_port(config.host, config.port)
            undo.callback(self._place.close)
            self._policy: Policy = build_policy(policy_config, LIBERO, seed=config.seed)
            if (close := getattr(self._policy, "close", None)) is not None:
                undo.callback(close)
            self._keys = _keys_of(self._policy, config.protocol)
            self._closing = undo.pop_all()
        self.port: int = self._place.getsockname()[1]

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM. In the main thread; handlers of these signals are afterwards what they were."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            asyncio.run(self._until_signalled())
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _until_signalled(self) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            _log.info("closing; a second signal ends at once")
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            ended.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
        await self.serve(ended)

    async def serve(self, ended: asyncio.Event) -> None:
        """Serve until `ended` is set, once: the policy is closed then."""
        with self._closing:
            await self._serve(ended)

    async def _serve(self, ended: asyncio.Event) -> None:
        config = self.config
        batcher = Batcher(
            self._policy,
            max_batch=config.max_batch,
            max_wait_s=config.max_wait_s,
            temperature=config.temperature,
            seed=config.seed,
        )
        open_session = self._session_opener(batcher)
        clients = 0

        async def handle(client: Socket) -> None:
            nonlocal clients
            clients += 1
            await _talk(client, clients, batcher, open_session)

        def health() -> dict[str, Any]:
            return {
                "status": "ok",
                "policy": self.name,
                "protocol": config.protocol,
                "clients": batcher.clients,
                "decisions": batcher.decisions,
            }

        began = time.monotonic()
        deciding = asyncio.create_task(batcher.run())
        async with listening(self._place, handle, health=health):
            where = f"{config.host}:{self.port}"
            _log.info(
                "serving %s to %s clients at ws://%s (http://%s/health), %s; Ctrl-C ends it",
                *(self.name, config.protocol, where, where),
                f"sampled at T = {config.temperature:g}" if config.temperature else "greedy",
            )
            told = asyncio.create_task(ended.wait())
            await asyncio.wait((told, deciding), return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            deciding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await deciding  # raises what ended it, if that was nobody's wish
        _log.info(
            "served %d decisions in %d policy calls to %d clients in %.0f s",
            *(batcher.decisions, batcher.calls, clients, time.monotonic() - began),
        )

    def _session_opener(self, batcher: Batcher) -> OpenSession:
        name, keys, playing = self.name, self._keys, set[str]()
        if self.config.protocol == "vla-eval":
            return lambda number: VlaEvalSession(number, batcher, name=name, keys=keys, playing=playing)
        size = self._policy.chunk_size
        return lambda number: OpenpiSession(number, batcher, name=name, keys=keys, chunk_size=size)


async def _talk(client: Socket, number: int, batcher: Batcher, open_session: OpenSession) -> None:
    """Answer one client until it is gone."""
    session = open_session(number)
    batcher.clients += 1
    _log.info("client %d came: %s", number, client.address)
    try:
        greeting = session.greeting()
        if greeting is not None:
            await client.send(greeting)
        while True:
            data = await client.receive()
            try:
                answer = await session.answer(data)
            except WireError as error:
                _log.warning("client %d: refused: %s", number, error)
                answer = session.refusal(str(error))
            except Exception as error:  # the fault boundary of one question: the others' go on
                _log.exception("client %d: the policy failed", number)
                answer = session.refusal(f"the policy failed: {type(error).__name__}: {error}")
            if answer is not None:
                await client.send(answer)
    except ConnectionLostError as lost:
        _log.info("client %d left: %s", number, lost)
    finally:
        batcher.clients -= 1
        session.close()


def _keys_of(policy: Policy, protocol: str) -> tuple[str, ...]:
    """What the policy reads of what clients send.

    Raises:
        ValueError: It reads something else, or decides no LIBERO actions.
    """
    keys = tuple(key for key in policy.observation_keys if key != INSTRUCTION)
    for key in keys:
        if key not in LIBERO.observations:
            raise ValueError(
                f"the policy reads {key!r}, which clients of {protocol} do not send: {', '.join(LIBERO.observations)}"
            )
    if policy.action_dim != LIBERO.action_dim:
        raise ValueError(
            f"the policy decides actions of {policy.action_dim} numbers, {protocol} clients play LIBERO's {LIBERO.action_dim}"
        )
    return keys


def _take_port(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet.

    Raises:
        ValueError: It cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        place = socket.socket(family, kind)
    except OSError as error:
        raise ValueError(f"host {host!r}: {error.strerror or error}") from None
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as error:
        place.close()
        raise ValueError(f"port {port} of {host} cannot be had: {error.strerror or error}; choose another --port") from None
    return place
