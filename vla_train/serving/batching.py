"""Observations of several clients as one policy call.

Rows wait until the policy is free, and then `max_wait_s` at most for the clients that have not asked yet. While it decides, the
next rows gather. Rows whose arrays differ in shape are decided one shape after the other. Where a call with several rows fails,
each is tried alone: the error goes to those whose it is.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vla_train.pipeline.policy_contract import check_output
from vla_train.policy.base import Policy
from vla_train.types import Arrays, Observation, Place
from vla_train.wire.packing import WireError

_CLOSING = "the server is closing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one client wants decided."""

    arrays: Arrays
    """What the policy reads of one slot."""
    instruction: str
    place: Place


_Asked = tuple[Row, "asyncio.Future[np.ndarray]"]
"""A row, and where its answer goes."""


class Batcher:
    """Decides rows, together where it can.

    Args:
        policy: Decides; called in a thread of its own.
        max_batch: Most rows of a call.
        max_wait_s: See the module.
        temperature: 0 is greedy.
        seed: With the row's place, decides what is sampled.
    """

    def __init__(self, policy: Policy, *, max_batch: int, max_wait_s: float, temperature: float, seed: int) -> None:
        self._policy = policy
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._temperature = temperature
        self._seed = seed
        self._waiting: list[_Asked] = []
        self._deciding: list[_Asked] = []
        self._changed = asyncio.Event()
        self._ended = False
        self.clients = 0
        """Connections: nobody is waited for when all of them wait already."""
        self.decisions = 0
        """Rows decided."""
        self.calls = 0
        """Policy calls that it took."""

    async def decide(self, row: Row) -> np.ndarray:
        """(K, A) float32: the chunk of actions for a row.

        Raises:
            WireError: The server is closing.
            Exception: What the policy raises.
        """
        if self._ended:
            raise WireError(_CLOSING)
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, answer))
        self._changed.set()
        return await answer

    async def run(self) -> None:
        """Decide what comes until cancelled; a call under way is waited for."""
        try:
            with ThreadPoolExecutor(1, "policy") as thread:
                while True:
                    await self._gather()
                    self._deciding, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
                    for rows in _by_shape(self._deciding):
                        await self._answer(rows, thread)
        finally:
            self._ended = True
            for _, answer in (*self._deciding, *self._waiting):
                if not answer.done():
                    answer.set_exception(WireError(_CLOSING))

    async def _gather(self) -> None:
        """Wait for a row, and a little for those that may come with it."""

        async def until(wanted: int) -> None:
            while len(self._waiting) < wanted:
                self._changed.clear()
                await self._changed.wait()

        await until(1)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until(min(self.clients, self._max_batch)), self._max_wait_s)

    async def _answer(self, rows: list[_Asked], thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        try:
            chunks = await loop.run_in_executor(thread, self._act, [row for row, _ in rows])
            answers = list(zip((answer for _, answer in rows), chunks, strict=True))
        except Exception as error:  # the fault boundary of a policy call
            if len(rows) > 1:
                for single in rows:
                    await self._answer([single], thread)
            elif not rows[0][1].done():
                rows[0][1].set_exception(error)
            return
        self.calls += 1
        self.decisions += len(rows)
        for answer, chunk in answers:
            if not answer.done():
                answer.set_result(chunk)

    def _act(self, rows: list[Row]) -> np.ndarray:
        observation = Observation(
            arrays={key: np.stack([row.arrays[key] for row in rows]) for key in rows[0].arrays},
            instructions=tuple(row.instruction for row in rows),
            places=tuple(row.place for row in rows),
        )
        uniforms = None
        if self._temperature > 0:
            uniforms = np.stack([self._uniforms(row.place) for row in rows])
        output = self._policy.act(observation, uniforms=uniforms, temperature=self._temperature or 1.0)
        check_output(output, len(rows), self._policy)
        return output.actions

    def _uniforms(self, place: Place) -> np.ndarray:
        draw = np.random.default_rng((self._seed, place.slot, place.episode, place.decision))
        return draw.random(self._policy.num_uniforms, np.float32)


def _by_shape(batch: list[_Asked]) -> Iterator[list[_Asked]]:
    shapes: dict[tuple[object, ...], list[_Asked]] = {}
    for row, answer in batch:
        shapes.setdefault(tuple(array.shape for array in row.arrays.values()), []).append((row, answer))
    yield from shapes.values()
