"""What Gymnasium's wrappers that turn arrays into tensors (`NumpyToTorch`) make of texts, and of arrays of objects.

By themselves they take a text for a list of letters, and spoil it; an array of objects (texts, final observations) is an error.
Here a text is left as it is, and of an array of objects each object is converted.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np


@cache
def convert_texts_to_themselves() -> None:
    """Tell Gymnasium, where what those wrappers need is installed."""
    if find_spec("array_api_compat") is None:
        return
    from gymnasium.wrappers.array_conversion import array_conversion

    convert_numbers = array_conversion.dispatch(np.ndarray)

    def convert_array(values: np.ndarray, xp: Any, device: Any = None) -> Any:
        if values.dtype != object:
            return convert_numbers(values, xp, device)
        converted = np.empty_like(values)
        for place, value in np.ndenumerate(values):
            converted[place] = array_conversion(value, xp, device)
        return converted

    array_conversion.register(np.ndarray, convert_array)
    array_conversion.register(str, lambda text, xp, device=None: text)
