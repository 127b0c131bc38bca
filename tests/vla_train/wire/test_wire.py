"""What strangers send, and what is said where they cannot be reached."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from vla_train.wire.openpi import read_metadata
from vla_train.wire.packing import WireError, unpack
from vla_train.wire.reading import read_actions, read_state
from vla_train.wire.sockets import ConnectionLostError, connect
from vla_train.wire.vla_eval import Message, check_version, pack_message, unpack_message


def blank(side: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG", compress_level=1)
    return {"__image__": True, "format": "png", "data": file.getvalue()}


def test_pictures_of_one_message_are_counted_together() -> None:
    picture = blank(4096)
    assert len(unpack(msgpack.packb([picture]))) == 1
    with pytest.raises(WireError, match="pictures of more than 33554432 pixels in one message"):
        unpack(msgpack.packb([picture, picture, blank(1)]))
    with pytest.raises(WireError, match="a picture of 4097 x 4097 pixels is too large"):
        unpack(msgpack.packb(blank(4097)))


@pytest.mark.parametrize("kind", [["hello"], {}, 1])
def test_a_type_that_is_no_text_is_refused(kind: Any) -> None:
    with pytest.raises(WireError, match="type must be one of"):
        unpack_message(msgpack.packb({"type": kind, "payload": {}, "seq": 1}))


def test_arrays_are_no_types_and_no_versions() -> None:
    array = {"__ndarray__": True, "data": bytes(4), "dtype": "<u2", "shape": [2]}
    with pytest.raises(WireError, match="type must be one of"):
        unpack_message(msgpack.packb({"type": array, "payload": {}, "seq": 1}))
    hello = unpack_message(pack_message("hello", {"protocol_version": np.zeros(2)}, seq=1))
    with pytest.raises(WireError, match="this side speaks 1"):
        check_version(hello)
    with pytest.raises(WireError, match="this side speaks 1"):
        check_version(Message("hello", {}, 1))


@pytest.mark.parametrize("reads", [[["prompt"]], [{}], [1], "observation/image"])
def test_names_that_are_no_texts_are_refused(reads: Any) -> None:
    with pytest.raises(WireError, match="the metadata's reads must be among"):
        read_metadata({"reads": reads})


def test_a_mistyped_host_is_said_to_be_unknown() -> None:
    with pytest.raises(ConnectionLostError) as caught:
        asyncio.run(connect("ws://no-such-host.invalid:1", timeout_s=20))
    assert "Unknown error" not in str(caught.value)


@pytest.mark.parametrize("read", [lambda: read_actions(None, chunk_size=1, action_dim=7), lambda: read_state(None, "states")])
def test_numbers_that_are_not_there_are_missing_and_not_infinite(read: Callable[[], object]) -> None:
    with pytest.raises(WireError, match="are missing"):
        read()
