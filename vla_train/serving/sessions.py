"""One client each: from its messages to rows for the policy, and back to answers in its protocol.

Invariant: an answer goes to the client that asked, and a client that waits gets exactly one. In vla-eval's protocol nobody
waits after `episode_start`, so what was wrong with that is said in answer to the observations that follow: a message more would
be taken for the answer to the next observation, and each later one would be late by one.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vla_train.serving.batching import Batcher, Row
from vla_train.types import Place
from vla_train.wire import openpi, vla_eval
from vla_train.wire.packing import WireError, pack

_log = logging.getLogger(__name__)


class Session(Protocol):
    """A conversation with one client."""

    def greeting(self) -> bytes | None:
        """What the server says first."""
        ...

    async def answer(self, data: bytes | str) -> bytes | str | None:
        """What to say to a message; None says nothing.

        Raises:
            WireError: The message is refused.
            Exception: What the policy raises.
        """
        ...

    def refusal(self, reason: str) -> bytes | str:
        """How this protocol says that the message that was answered last is refused."""
        ...

    def close(self) -> None:
        """The client is gone."""
        ...


class VlaEvalSession:
    """vla-eval: an action for each observation, of the chunk that was decided last; a new chunk when it is used up.

    Args:
        number: Of this client.
        batcher: Decides.
        name: Of the policy.
        keys: What it reads of `wire.reading.OBSERVED`.
        playing: Names of the episodes that any client plays, shared among the sessions.
    """

    def __init__(self, number: int, batcher: Batcher, *, name: str, keys: tuple[str, ...], playing: set[str]) -> None:
        self._number = number
        self._batcher = batcher
        self._name = name
        self._keys = keys
        self._playing = playing
        self._seq = 0
        self._episodes = 0
        self._episode: str | None = None
        """Name of the episode under way, as the client has it; None between episodes."""
        self._refused = "no episode was started: send episode_start first"
        """Why there is no episode."""
        self._chunk: deque[np.ndarray] = deque()
        self._decisions = 0

    def greeting(self) -> None:
        return None

    async def answer(self, data: bytes | str) -> bytes | None:
        self._seq = 0  # until the message says
        message = await asyncio.to_thread(vla_eval.unpack_message, data)  # pictures take a while
        self._seq = message.seq
        if message.type == "hello":
            vla_eval.check_version(message)
            return vla_eval.pack_message("hello", vla_eval.server_hello(self._name, self._keys), seq=message.seq)
        if message.type == "observation":
            return vla_eval.pack_message("action", {"actions": await self._act(message.payload)}, seq=message.seq)
        if message.type == "episode_start":
            self._start(message.payload)
        elif message.type == "episode_end":
            self.close()
        elif message.type == "error":
            _log.warning("client %d reports: %s", self._number, message.payload)
        else:
            raise WireError(f"{message.type} is what the server sends, not the client")
        return None

    async def _act(self, payload: dict[str, Any]) -> np.ndarray:
        if self._episode is None:
            raise WireError(self._refused)
        arrays, instruction = vla_eval.read_observation(payload, self._keys)
        if not self._chunk:
            place = Place(slot=self._number, episode=self._episodes, decision=self._decisions)
            self._chunk.extend(await self._batcher.decide(Row(arrays=arrays, instruction=instruction, place=place)))
            self._decisions += 1
        return self._chunk.popleft()

    def _start(self, payload: dict[str, Any]) -> None:
        self.close()
        self._episodes += 1
        recording = payload.get("recording")
        episode = recording.get("eid") if isinstance(recording, dict) else None
        if not isinstance(episode, str):
            episode = f"{self._number}/{self._episodes}"
        if episode in self._playing:
            self._refused = f"episode_start was refused: another client plays episode {episode}"
            return
        self._episode = episode
        self._playing.add(episode)

    def refusal(self, reason: str) -> bytes:
        return vla_eval.pack_message("error", {"error": reason}, seq=self._seq)

    def close(self) -> None:
        if self._episode is not None:
            self._playing.discard(self._episode)
        self._episode, self._refused = None, "no episode was started: send episode_start first"
        self._chunk.clear()
        self._decisions = 0


class OpenpiSession:
    """openpi: a whole chunk for each observation; the connection is the session, and there are no episodes in the protocol.

    Args:
        As of `VlaEvalSession`.
        chunk_size: Actions of an answer.
    """

    def __init__(self, number: int, batcher: Batcher, *, name: str, keys: tuple[str, ...], chunk_size: int) -> None:
        self._number = number
        self._batcher = batcher
        self._metadata = openpi.metadata(name, keys, chunk_size=chunk_size)
        self._keys = keys
        self._decisions = 0

    def greeting(self) -> bytes:
        return pack(self._metadata, byte_keys=True)

    async def answer(self, data: bytes | str) -> bytes:
        began = time.perf_counter()
        arrays, instruction = await asyncio.to_thread(openpi.read_observation, data, self._keys)
        place = Place(slot=self._number, episode=0, decision=self._decisions)
        actions = await self._batcher.decide(Row(arrays=arrays, instruction=instruction, place=place))
        self._decisions += 1
        timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
        return pack({"actions": actions, "server_timing": timing}, byte_keys=True)

    def refusal(self, reason: str) -> str:
        return reason

    def close(self) -> None:
        pass


OpenSession = Callable[[int], Session]
"""Makes the session of the client with that number."""
