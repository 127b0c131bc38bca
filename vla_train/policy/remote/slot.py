"""One slot of the envs and its connection: kept over episodes, made again where it breaks off, never waited for without end.

Where a connection breaks off within an episode, its observation is sent again, and the episode goes on in a new session of the
server. One that remembers nothing between two questions gives the same answer there.
"""

import asyncio
import time
from collections.abc import Mapping

import numpy as np

from vla_train.errors import RunError
from vla_train.policy.remote.options import RemoteOptions
from vla_train.policy.remote.talks import TALKS, ServerFacts, Talk
from vla_train.types import Place
from vla_train.wire.packing import WireError
from vla_train.wire.reading import read_actions
from vla_train.wire.sockets import ConnectionLostError, connect

_ATTEMPTS = 3
"""How often one observation is sent before the server is taken to break off at it."""
_LOOK_S = 0.2
"""Seconds between two attempts to reach a server."""


class RemoteSlot:
    """Asks the server for the chunks of one slot.

    Args:
        options: Where it is, and how long it may take.
        facts: What it said.
        suite: Of the env.
    """

    def __init__(self, options: RemoteOptions, facts: ServerFacts, *, suite: str | None) -> None:
        self._options = options
        self._facts = facts
        self._suite = suite
        self._talk: Talk | None = None
        self._episode: int | None = None
        """The one that the server was told of on this connection."""
        self.losses: list[str] = []
        """How connections broke off, since the last look."""

    async def decide(
        self, place: Place, arrays: Mapping[str, np.ndarray], instruction: str, *, chunk_size: int, action_dim: int
    ) -> np.ndarray:
        """(K, A) float32.

        Raises:
            RunError: There is no answer in time, a wrong one, or a refusal.
        """
        url, timeout_s = self._options.url, self._options.timeout_s
        for _ in range(_ATTEMPTS):
            if self._talk is None:
                self._talk, _ = await open_talk(self._options)
            try:
                if self._episode != place.episode:
                    await self._end_episode(self._talk)
                    await self._talk.start_episode(instruction, self._suite)
                    self._episode = place.episode
                answer = await asyncio.wait_for(self._talk.ask(arrays, instruction, self._facts), timeout_s)
                return read_actions(answer, chunk_size=chunk_size, action_dim=action_dim)
            except ConnectionLostError as lost:
                self.losses.append(str(lost))
                self._talk, self._episode = None, None
            except TimeoutError:
                raise RunError(f"{url} gave no answer within {timeout_s:g} s (policy.kwargs timeout_s)") from None
            except WireError as error:
                raise RunError(f"{url} answered wrongly: {error}") from None
            except RunError as refusal:
                raise RunError(f"{url} {refusal}") from None
        raise RunError(f"{url} broke off {_ATTEMPTS} times at the same observation: {self.losses[-1]}")

    async def close(self) -> None:
        """End the episode and the connection, if there are any."""
        talk, self._talk = self._talk, None
        if talk is None:
            return
        try:
            await self._end_episode(talk)
        except ConnectionLostError:
            return
        await talk.socket.close()

    async def _end_episode(self, talk: Talk) -> None:
        if self._episode is not None:
            self._episode = None
            await talk.end_episode()


async def open_talk(options: RemoteOptions) -> tuple[Talk, ServerFacts]:
    """A connection, and what the server said first.

    Raises:
        RunError: There is none within `connect_s`, or it does not speak the protocol.
    """
    other = {"vla-eval": "openpi", "openpi": "vla-eval"}[options.protocol]
    hint = f"does it speak {other}? (policy.kwargs protocol={other})"
    end = time.monotonic() + options.connect_s
    while True:
        left = max(_LOOK_S, end - time.monotonic())
        try:
            return await _greeted(TALKS[options.protocol](await connect(options.url, timeout_s=left)), left)
        except ConnectionLostError as lost:
            if time.monotonic() + _LOOK_S > end:
                waited = f"after {options.connect_s:g} s (policy.kwargs connect_s)"
                raise RunError(f"{options.url} cannot be reached: {lost}, {waited}") from None
        except TimeoutError:
            raise RunError(f"{options.url} did not greet within {options.connect_s:g} s; {hint}") from None
        except WireError as error:
            raise RunError(f"{options.url} is no {options.protocol} server: {error}; {hint}") from None
        except RunError as refusal:
            raise RunError(f"{options.url} {refusal}; {hint}") from None
        await asyncio.sleep(_LOOK_S)


async def _greeted(talk: Talk, timeout_s: float) -> tuple[Talk, ServerFacts]:
    try:
        return talk, await asyncio.wait_for(talk.open(), timeout_s)
    except BaseException:
        await talk.socket.close()
        raise
