"""A client's side of each protocol, on one connection: what is said at first, an episode's beginning and end, a question."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vla_train.errors import RunError
from vla_train.types import IMAGE
from vla_train.wire import openpi, vla_eval
from vla_train.wire.packing import WireError, unpack
from vla_train.wire.reading import STATE, WRIST
from vla_train.wire.sockets import Socket

_RAW = "raw"
"""What vla-eval's servers call numbers of which they say nothing."""

_WISHES = ("send_wrist_image", "send_state", "quat_no_antipodal", "absolute_action")
"""What is read of a hello's `observation_params`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What a server says of itself before the first question."""

    name: str
    """"" where it says none."""
    keys: tuple[str, ...]
    """Which of `wire.reading.OBSERVED` it wants to be sent."""
    half_turns: bool = False
    """Whether it wants the state's rotation within half a turn."""
    absolute: bool = False
    """Whether it decides poses, and not changes."""
    formats: Mapping[str, str]
    """How parts of its actions are meant, by vla-eval's names, where it says."""
    image_size: int = 0
    """Pixels of a side of the images that it wants; 0: any."""


class Talk(Protocol):
    """One connection, in one protocol. Every method may raise `WireError` and `ConnectionLostError`."""

    socket: Socket

    async def open(self) -> ServerFacts:
        """Be greeted."""
        ...

    async def start_episode(self, instruction: str, suite: str | None) -> None: ...

    async def end_episode(self) -> None: ...

    async def ask(self, arrays: Mapping[str, np.ndarray], instruction: str, facts: ServerFacts) -> Any:
        """What the server calls actions, unchecked.

        Raises:
            RunError: The server says that it cannot answer.
        """
        ...


class VlaEvalTalk:
    """See `wire.vla_eval`."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self._seq = 0

    async def open(self) -> ServerFacts:
        hello = await self._answer("hello", {"harness_version": "vla-train", "protocol_version": vla_eval.VERSION}, "hello")
        vla_eval.check_version(hello)
        found = (hello.payload.get(name) for name in ("observation_params", "action_spec"))
        asked, spec = ({} if value is None else value for value in found)
        if not isinstance(asked, dict) or not isinstance(spec, dict):
            raise WireError("hello must have maps as observation_params and action_spec")
        for name in _WISHES:
            if not isinstance(asked.get(name, False), bool | int | None):
                raise WireError(f"observation_params {name} must be true or false, got {type(asked[name]).__name__}")
        wanted = {IMAGE: True, WRIST: asked.get("send_wrist_image"), STATE: asked.get("send_state")}
        return ServerFacts(
            name=str(hello.payload.get("model_server", "")),
            keys=tuple(key for key, is_wanted in wanted.items() if is_wanted),
            half_turns=not asked.get("quat_no_antipodal"),
            absolute=bool(asked.get("absolute_action")),
            formats={part: str(how["format"]) for part, how in spec.items() if isinstance(how, dict) and "format" in how},
        )

    async def start_episode(self, instruction: str, suite: str | None) -> None:
        task = {"name": instruction} if suite is None else {"name": instruction, "suite": suite}
        await self._say("episode_start", {"task": task})

    async def end_episode(self) -> None:
        await self._say("episode_end", {})

    async def ask(self, arrays: Mapping[str, np.ndarray], instruction: str, facts: ServerFacts) -> Any:
        payload = vla_eval.pack_observation(arrays, instruction, half_turns=facts.half_turns)
        answer = (await self._answer("observation", payload, "action")).payload
        return answer.get("actions", answer.get("action"))

    async def _say(self, kind: str, payload: Mapping[str, Any]) -> None:
        self._seq += 1
        await self.socket.send(vla_eval.pack_message(kind, payload, seq=self._seq))

    async def _answer(self, kind: str, payload: Mapping[str, Any], wanted: str) -> vla_eval.Message:
        await self._say(kind, payload)
        answer = vla_eval.unpack_message(await self.socket.receive())
        if answer.type == "error":
            raise RunError(f"refused: {answer.payload.get('error', answer.payload)}")
        if answer.type != wanted:
            raise WireError(f"{wanted} was to come, got {answer.type}")
        if answer.seq != self._seq:
            raise WireError(f"message {self._seq} was asked, message {answer.seq} is answered: are two clients in one episode?")
        return answer


class OpenpiTalk:
    """See `wire.openpi`. Episodes are not told: the protocol has no message for them."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket

    async def open(self) -> ServerFacts:
        found = unpack(await self._receive())
        keys, size = openpi.read_metadata(found)
        return ServerFacts(name=str(found.get("server", "")), keys=keys, formats={}, image_size=size)

    async def start_episode(self, instruction: str, suite: str | None) -> None:
        pass

    async def end_episode(self) -> None:
        pass

    async def ask(self, arrays: Mapping[str, np.ndarray], instruction: str, facts: ServerFacts) -> Any:
        await self.socket.send(openpi.pack_observation(arrays, instruction))
        answer = unpack(await self._receive())
        if not isinstance(answer, dict) or "actions" not in answer:
            got = (", ".join(map(str, answer)) or "nothing") if isinstance(answer, dict) else type(answer).__name__
            raise WireError(f"a map with actions was to come, got {got}")
        return answer["actions"]

    async def _receive(self) -> bytes:
        data = await self.socket.receive()
        if isinstance(data, str):
            lines = [line for line in data.splitlines() if line.strip()]
            raise RunError(f"refused: {lines[-1].strip() if lines else 'it does not say why'}")  # of a traceback, the error
        return data


TALKS: Mapping[str, type[VlaEvalTalk] | type[OpenpiTalk]] = {"vla-eval": VlaEvalTalk, "openpi": OpenpiTalk}
"""By the name of the protocol."""


def require_conventions(facts: ServerFacts, *, control: str) -> None:
    """Refuse a server whose actions mean something else than LIBERO's.

    Args:
        facts: Of the server.
        control: How the env takes actions: `osc_delta`, `osc_absolute`, ...

    Raises:
        ValueError: They do; the message says what to change.
    """
    needed = "osc_absolute" if facts.absolute else "osc_delta"
    if control != needed:
        kind = "poses (absolute_action)" if facts.absolute else "changes of the pose"
        raise ValueError(f"the server decides {kind}, and the env takes control={control}: set --env.kwargs control={needed}")
    for part, how in vla_eval.ACTION_SPEC.items():
        accepted = {_RAW, how["format"], "absolute_xyz" if facts.absolute and part == "position" else _RAW}
        if facts.formats.get(part, _RAW) not in accepted:
            raise ValueError(f"the server decides {part} as {facts.formats[part]}, and the env takes {how['format']}")
