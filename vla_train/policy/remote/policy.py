"""A `Policy` whose decisions a server makes. Connections live in an event loop in a thread of their own.

Invariant: the questions of a batch are in flight together, and within the time-outs that were given each is answered, or the
call has failed. It cannot be trained: it has no weights here.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from vla_train.config import PolicyConfig
from vla_train.errors import RunError
from vla_train.policy.remote.options import RemoteOptions
from vla_train.policy.remote.slot import RemoteSlot, open_talk
from vla_train.policy.remote.talks import ServerFacts, require_conventions
from vla_train.types import INSTRUCTION, EnvDescription, Observation, PolicyOutput
from vla_train.wire.packing import require_msgpack
from vla_train.wire.reading import STATE
from vla_train.wire.resizing import resized
from vla_train.wire.sockets import require_websockets
from vla_train.wire.vla_eval import play_gripper

_log = logging.getLogger(__name__)
_CLOSE_S = 5.0
_T = TypeVar("_T")


def check_options(config: PolicyConfig) -> None:
    """Refuse what cannot be played, before any simulator is started; waits `connect_s` at most for the server.

    Raises:
        ValueError: Options are wrong, or nobody is there who speaks the protocol.
        ImportError: A library is missing; the message says what to install.
    """
    options = RemoteOptions.of(config)
    require_msgpack()
    require_websockets()
    try:
        asyncio.run(_look(options))
    except RunError as error:
        raise ValueError(str(error)) from None


def build_policy(config: PolicyConfig, env: EnvDescription, *, seed: int) -> "RemotePolicy":
    """Connect to the server that `config.url` names; see `policy.base.PolicyFactory`. What is drawn is the server's.

    Raises:
        ValueError: Options are wrong, or the server's actions are none of the env's.
        RunError: It cannot be reached, or speaks something else.
    """
    return RemotePolicy(RemoteOptions.of(config), env, chunk_size=config.chunk_size)


class RemotePolicy:
    """See `vla_train.policy.base.Policy`.

    Args:
        options: Which server.
        env: What is played. One of a suite is LIBERO's, and its actions are played as LIBERO's client of the protocol does.
        chunk_size: K: how many actions of an answer are played.

    Raises:
        As `build_policy`.
    """

    num_uniforms = 0

    def __init__(self, options: RemoteOptions, env: EnvDescription, *, chunk_size: int) -> None:
        self.version = 0
        self.chunk_size = chunk_size
        self.action_dim = env.action_dim
        self._options = options
        self._suite = env.suite
        self._plays_signs = options.protocol == "vla-eval" and env.suite is not None
        """Whether the gripper is played as vla-eval's LIBERO benchmark plays it."""
        self._slots: dict[tuple[int, int], RemoteSlot] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote policy", daemon=True)
        self._thread.start()
        try:
            self._facts = self._run(_look(options))
            if env.suite is not None:
                require_conventions(self._facts, control=str(env.simulation.get("control", "osc_delta")))
        except BaseException:
            self.close()
            raise

    @property
    def observation_keys(self) -> tuple[str, ...]:
        return (*self._facts.keys, INSTRUCTION)

    @property
    def played_with(self) -> dict[str, Any]:
        """Who decides."""
        size = self._facts.image_size
        return {
            "server": self._options.url,
            "called": self._facts.name or "nothing",
            "protocol": self._options.protocol,
            "images sent": f"{size} x {size}" if size else "as drawn",
        }

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        """Ask the server for B rows; it draws as it is set up to. See `Policy.act`.

        Raises:
            RunError: There is no answer in time, a wrong one, or a refusal.
        """
        if len(observation.places) != len(observation):
            raise RuntimeError("a remote policy plays episodes: say in observation.places which ones these rows are of")
        actions = self._run(self._decide(observation))
        return PolicyOutput(
            actions=play_gripper(actions) if self._plays_signs else actions, decision={}, policy_version=self.version
        )

    def close(self) -> None:
        """End all sessions. The policy cannot be used afterwards."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._close_slots())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_S)
            self._loop.close()

    async def _decide(self, observation: Observation) -> np.ndarray:
        """(B, K, A) float32."""
        slots = []
        for place in observation.places:
            key = place.worker, place.slot
            if key not in self._slots:
                self._slots[key] = RemoteSlot(self._options, self._facts, suite=self._suite)
            slots.append(self._slots[key])
        questions = [
            slot.decide(
                place,
                {key: self._as_sent(key, observation[key][row]) for key in self._facts.keys},
                observation.instructions[row],
                chunk_size=self.chunk_size,
                action_dim=self.action_dim,
            )
            for row, (slot, place) in enumerate(zip(slots, observation.places, strict=True))
        ]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        self._tell_losses(slots)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return np.stack([answer for answer in answers if isinstance(answer, np.ndarray)])

    def _as_sent(self, key: str, array: np.ndarray) -> np.ndarray:
        return array if key == STATE else resized(array, self._facts.image_size)

    def _tell_losses(self, slots: list[RemoteSlot]) -> None:
        losses = [loss for slot in slots for loss in slot.losses]
        for slot in slots:
            slot.losses.clear()
        if losses:
            _log.warning(
                "%s: %d connections broke off (%s); the episodes go on in new sessions of the server",
                *(self._options.url, len(losses), losses[0]),
            )

    async def _close_slots(self) -> None:
        with contextlib.suppress(TimeoutError):  # of a server that does not even say goodbye
            await asyncio.wait_for(asyncio.gather(*(slot.close() for slot in self._slots.values())), _CLOSE_S)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for work in the loop's thread; where the wait is broken off, so is the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _look(options: RemoteOptions) -> ServerFacts:
    """What the server says first, to a connection that asks nothing."""
    talk, facts = await open_talk(options)
    await talk.socket.close()
    return facts if options.image_size is None else replace(facts, image_size=options.image_size)
