"""What of a scene is drawn anew for each episode, and within which bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Randomization:
    """What each episode draws anew, from its own seed: the same in whichever slot it is played. Left out: as the scene has it.

    Raises:
        ValueError: A bound that cannot be, or nothing that is drawn.
    """

    fixtures: bool = False
    """Fixtures (cabinets, stoves, microwaves, racks) stand anywhere where stock LIBERO may put them at a reset."""
    light_intensity: float = 0.0
    """x in [0, 1): each light is from 1 - x to 1 + x times as bright."""
    light_position_m: float = 0.0
    """Each light is moved by up to so much along each axis."""
    light_direction_deg: float = 0.0
    """Each light is turned by up to so much about any axis."""
    colours: float = 0.0
    """x in [0, 1): red, green and blue of each material, the robot's apart, are from 1 - x to 1 times what they were."""
    textures: bool = False
    """Floor, walls and table wear each other's patterns, and others that the scene has for flat things."""
    camera_position_m: float = 0.0
    """Each camera is moved by up to so much along each of its own axes."""
    camera_rotation_deg: float = 0.0
    """Each camera is turned by up to so much about any axis."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool | np.bool_):
                    raise ValueError(f"{field.name} must be True or False, got {value!r}")
                continue
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            below, bound = _BOUNDS.get(field.name, (math.inf, "finite"))
            if not number or not 0 <= value < below:
                raise ValueError(f"{field.name} must be a number from 0 upwards, {bound}, got {value!r}")
        if not any(getattr(self, field.name) for field in fields(self)):
            names = ", ".join(field.name for field in fields(self))
            raise ValueError(f"a Randomization must draw something: set any of {names}; for nothing, randomization=None")

    @property
    def changes_looks(self) -> bool:
        """Whether anything but where fixtures stand is drawn."""
        return any(getattr(self, field.name) for field in fields(self) if field.name != "fixtures")


_BOUNDS = {
    **dict.fromkeys(("light_intensity", "colours"), (1.0, "below 1")),
    **dict.fromkeys(("light_direction_deg", "camera_rotation_deg"), (90.0, "below 90")),
}


def read_randomization(given: Randomization | Mapping[str, Any] | None) -> Randomization | None:
    """What the option of that name asks for; a mapping has the fields of a `Randomization`, as in JSON.

    Raises:
        ValueError: It is none of these.
    """
    if given is None or isinstance(given, Randomization):
        return given
    names = [field.name for field in fields(Randomization)]
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        raise ValueError(f"randomization must be a Randomization, or a mapping with any of {', '.join(names)}, got {given!r}")
    return Randomization(**given)
