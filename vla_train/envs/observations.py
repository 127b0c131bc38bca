"""Observations of any Gymnasium env as arrays by key.

    Dict(image=..., robot=Dict(pose=...))   ->  "image", "robot/pose"
    Box (H, W, 3) uint8                     ->  "image"
    any other Box                           ->  "state"

The image that `env.image_key` names is called "image", whatever its own name; `render` takes what the env's `render` draws.
Texts are no arrays: the one called "instruction" is the instruction, others are left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from vla_train.config import EnvConfig
from vla_train.types import IMAGE, INSTRUCTION, ArraySpec, on_host

RENDER = "render"
"""Value of `env.image_key` for envs that draw their image in `render()`."""
STATE = "state"


def array_specs(space: gym.Space[Any], *, image_key: str) -> dict[str, ArraySpec]:
    """The arrays of one slot's observation, by key. What is called "image" and is not the main image is left out.

    Raises:
        ValueError: There is no image of the name that was given.
    """
    found = {}
    for path, leaf in _leaves(space, ""):
        if isinstance(leaf, gym.spaces.Text) or leaf.shape is None or leaf.dtype is None:
            continue
        spec = ArraySpec(tuple(leaf.shape), np.dtype(leaf.dtype).name)
        key = path or (IMAGE if is_image(spec) else STATE)
        if key == image_key or key != IMAGE or not path:
            found[IMAGE if key == image_key else key] = spec
    if image_key not in (IMAGE, RENDER) and IMAGE not in found:
        raise ValueError(f"no image {image_key!r} in the observation ({', '.join(found) or 'nothing'}): set env.image_key")
    return found


def is_image(spec: ArraySpec) -> bool:
    """Whether it is (H, W, 3) uint8."""
    return len(spec.shape) == 3 and spec.shape[2] == 3 and spec.dtype == "uint8"


def read_array(observation: Any, key: str, *, image_key: str, tensors: bool = False) -> Any:
    """One array of an observation: of one slot, or of all slots of a vector env.

    Args:
        tensors: Leave a PyTorch tensor that is on a GPU there; otherwise it is copied to the host.
    """
    if isinstance(observation, Mapping):
        observation = _look_up(observation, image_key if key == IMAGE else key)
    return observation if tensors and getattr(observation, "is_cuda", False) else on_host(observation)


def has_instruction(space: gym.Space[Any], config: EnvConfig) -> bool:
    """Whether the env itself says what to do, or the config.

    Raises:
        ValueError: Both do.
    """
    own = isinstance(space, gym.spaces.Dict) and isinstance(space.spaces.get(INSTRUCTION), gym.spaces.Text)
    if own and config.instruction is not None:
        raise ValueError(f"{config.id} says itself what to do: leave env.instruction out")
    return own or config.instruction is not None


def read_instruction(observation: Any, default: str | None) -> Any:
    """The text of one slot, or the texts of all slots of a vector env; None where neither env nor config says anything."""
    said: Any = observation.get(INSTRUCTION) if isinstance(observation, Mapping) else None
    texts = [said] if np.ndim(said) == 0 else said
    return said if all(isinstance(text, str) for text in texts) else default


def _leaves(space: gym.Space[Any], path: str) -> Iterator[tuple[str, gym.Space[Any]]]:
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, f"{path}/{key}" if path else str(key))
    else:
        yield path, space


def _look_up(observation: Mapping[str, Any], key: str) -> Any:
    if key in observation:
        return observation[key]
    outer, slash, inner = key.partition("/")
    while slash and outer not in observation:
        more, slash, inner = inner.partition("/")
        outer = f"{outer}/{more}"
    return _look_up(observation[outer], inner)
