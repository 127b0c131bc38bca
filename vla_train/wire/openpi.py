"""openpi's protocol (written for openpi-client 0.1.2): what its LIBERO client sends, and what it plays.

    server: metadata, a map of anything
    client: {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    server: {"actions": (N, 7), ...}; a text instead is an error

A connection is a session; questions and answers alternate. Of an answer the client plays the first few actions, as they are.
Its client shrinks images to 224 x 224 pixels, unless told otherwise. The metadata of our own server say what it can do with:
`reads` are the keys that its policy looks at, and `image_size` 0 stands for images as they were drawn.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_train.types import IMAGE
from vla_train.wire.packing import WireError, pack, unpack
from vla_train.wire.reading import OBSERVED, STATE, WRIST, read_image, read_instruction, read_state

CLIENT_IMAGE_SIZE = 224
"""Pixels of a side, as its LIBERO client sends images."""
_NAMES = {IMAGE: "observation/image", WRIST: "observation/wrist_image", STATE: "observation/state"}
_PROMPT = "prompt"


def metadata(server: str, keys: tuple[str, ...], *, chunk_size: int) -> dict[str, Any]:
    """What our server says first."""
    return {"server": server, "reads": [_NAMES[key] for key in keys], "image_size": 0, "chunk_size": chunk_size}


def read_metadata(found: Any) -> tuple[tuple[str, ...], int]:
    """Which of our keys a server reads, and the size that images should have (0: any).

    Raises:
        WireError: It is no map, or says what cannot be.
    """
    if not isinstance(found, dict):
        raise WireError(f"the metadata must be a map, got {type(found).__name__}")
    ours = {name: key for key, name in _NAMES.items()}
    reads, size = found.get("reads"), found.get("image_size")
    if reads is not None and not (isinstance(reads, list) and all(isinstance(name, str) and name in ours for name in reads)):
        raise WireError(f"the metadata's reads must be among {', '.join(ours)}, got {reads!r}")
    keys = OBSERVED if reads is None else tuple(ours[name] for name in reads)
    return keys, size if isinstance(size, int) and size >= 0 else CLIENT_IMAGE_SIZE


def pack_observation(arrays: Mapping[str, np.ndarray], instruction: str) -> bytes:
    """A question about one slot."""
    asked: dict[str, Any] = {_PROMPT: instruction}
    for key, array in arrays.items():
        # float64: what the client's concatenation of robosuite's arrays is
        asked[_NAMES[key]] = array.astype(np.float64) if key == STATE else array
    return pack(asked, byte_keys=True)


def read_observation(data: bytes | str, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], str]:
    """The arrays named in `keys`, and the instruction.

    Raises:
        WireError: It is no observation, or a part is missing or not what it should be.
    """
    found = unpack(data)
    if not isinstance(found, dict):
        raise WireError(f"an observation must be a map, got {type(found).__name__}")
    missing = [name for name in (*(_NAMES[key] for key in keys), _PROMPT) if name not in found]
    if missing:
        raise WireError(f"an observation must have {', '.join(missing)}, got {', '.join(map(str, found)) or 'nothing'}")
    readers = {STATE: read_state}
    arrays = {key: readers.get(key, read_image)(found[_NAMES[key]], _NAMES[key]) for key in keys}
    return arrays, read_instruction(found[_PROMPT], _PROMPT)
