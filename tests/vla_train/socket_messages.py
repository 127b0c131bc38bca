"""Messages to policies' servers as the tests themselves write and read them: nothing of `vla_train.wire` is in it."""

from typing import Any

import msgpack
import numpy as np


def picture(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def packed(array: np.ndarray, *, keys: type = str) -> dict[Any, Any]:
    parts = {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}
    return parts if keys is str else {name.encode(): part for name, part in parts.items()}


def unpacked(data: bytes | str) -> Any:
    def array(found: dict[Any, Any]) -> Any:
        parts = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        if "__ndarray__" not in parts:
            return found
        return np.frombuffer(parts["data"], parts["dtype"]).reshape(parts["shape"])

    assert isinstance(data, bytes), data
    return msgpack.unpackb(data, object_hook=array)
