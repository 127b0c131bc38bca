"""Messages as bytes: msgpack, with arrays as maps that name themselves.

vla-eval writes an array as {"__ndarray__", "data", "dtype", "shape"}, openpi the same with names that are bytes, and vla-eval a
picture as {"__image__", "format", "data"} besides. All of them are read here, and arrays are written in either way. Nothing
that comes in is executed or trusted: what it says of itself is checked.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = "pip install 'vla-train[serve]'"
"""What brings the libraries of both ends."""
MAX_BYTES = 64 * 2**20
"""Most bytes of one message: two cameras of 2,000 x 2,000 pixels as they are."""
_MAX_PIXELS = 4096 * 4096
"""Most pixels of one compressed picture: a few bytes may stand for any number of them."""
_MAX_PIXELS_IN_ALL = 2 * _MAX_PIXELS
"""Of all of a message."""
_NUMBERS = "biuf"
"""NumPy's kinds of numbers that may come in: bool, whole, unsigned, real."""


class WireError(ValueError):
    """A message that cannot be what it should be; the text says what is wrong, for whoever sent it."""


def pack(content: Any, *, byte_keys: bool = False) -> bytes:
    """One message; NumPy's arrays and numbers may stand anywhere in it.

    Args:
        content: Maps, lists, texts, numbers, bytes, arrays.
        byte_keys: Name the parts of an array as openpi does.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} cannot be sent")
        value = np.ascontiguousarray(value)
        parts = {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
        return {name.encode(): part for name, part in parts.items()} if byte_keys else parts

    return require_msgpack().packb(content, default=plain)


def unpack(data: bytes | str) -> Any:
    """What a message says; its arrays are read-only.

    Raises:
        WireError: It is no msgpack, or an array or a picture in it is not what it says of itself.
    """
    if isinstance(data, str):
        raise WireError(f"a binary message is wanted, got the text {data[:80]!r}")
    try:
        return require_msgpack().unpackb(data, object_hook=_Arrays().read)
    except WireError:
        raise
    except Exception as error:  # whatever a stranger's bytes bring about
        raise WireError(f"not msgpack ({len(data)} bytes): {type(error).__name__}: {error}") from None


class _Arrays:
    """Reads the arrays of one message."""

    def __init__(self) -> None:
        self._pixels = 0
        """Of the pictures so far."""

    def read(self, found: dict[Any, Any]) -> Any:
        """A map as it came, or the array that it stands for."""
        if not any(key in found for key in ("__ndarray__", b"__ndarray__", "__npgeneric__", b"__npgeneric__", "__image__")):
            return found
        parts = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        try:
            if "__image__" in parts and parts["format"] != "raw":
                return self._picture(parts["data"])
            kind = np.dtype(_text(parts["dtype"]))
            if kind.kind not in _NUMBERS:
                raise WireError(f"an array of dtype {kind} is not taken: numbers are")
            if "__npgeneric__" in parts:
                return kind.type(parts["data"])
            return np.frombuffer(parts["data"], kind).reshape(parts["shape"])
        except WireError:
            raise
        except (KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
            raise WireError(f"an array that is not what it says: {type(error).__name__}: {error}") from None

    def _picture(self, data: bytes) -> np.ndarray:
        """(H, W, C) uint8 of a PNG or JPEG."""
        from PIL import Image

        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            pixels = picture.width * picture.height
            if pixels > _MAX_PIXELS:
                raise WireError(f"a picture of {picture.width} x {picture.height} pixels is too large")
            self._pixels += pixels
            if self._pixels > _MAX_PIXELS_IN_ALL:
                raise WireError(f"pictures of more than {_MAX_PIXELS_IN_ALL} pixels in one message are too large")
            return np.asarray(picture)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def require_msgpack() -> "ModuleType":
    """The library.

    Raises:
        ImportError: It is missing; the message says what to install.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ImportError(f"policies over a socket need msgpack: {INSTALL}") from error
    return msgpack
