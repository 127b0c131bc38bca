"""Cameras: which there are, how one adds one's own, and what each of them draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

CAMERAS = ("agentview", "wrist", "frontview", "birdview", "sideview", "galleryview", "paperview", "robot0_robotview")
"""Those of LIBERO's scenes; some have no "paperview"."""
LIBERO_NAMES = {"robot0_eye_in_hand": "wrist"}
"""Names by which LIBERO knows a camera that has another one here."""
LEAST_SIZE = 8
"""Pixels along a side of a picture."""

ImageSize = int | Sequence[int]
"""Height and width, equal or one after the other, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera of one's own, which stands still in the world.

    Raises:
        ValueError: Something that a camera cannot have.
    """

    name: str
    """Its picture is observed as `{name}_image`."""
    position: Sequence[float]
    """(3,) m, world frame; LIBERO's z points up, and its robot looks along x."""
    target: Sequence[float] | None = None
    """(3,) m: a point that it looks at, the world's z upwards in the picture; or `quaternion`."""
    quaternion: Sequence[float] | None = None
    """(4,) w x y z: its rotation in the world, as MuJoCo's cameras have it; (1, 0, 0, 0) looks down, y upwards."""
    fovy_deg: float = 45.0
    """Vertical field of view in degrees."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"a camera's name must be a word of letters, digits and '_', got {self.name!r}")
        if self.name in (*CAMERAS, *LIBERO_NAMES):
            raise ValueError(f"{self.name!r} is a camera of LIBERO: give yours another name")
        position = self._keep("position", 3)
        if (self.target is None) == (self.quaternion is None):
            raise ValueError(f"camera {self.name!r} needs a target or a quaternion, one of them")
        if self.quaternion is not None and not self._keep("quaternion", 4).any():
            raise ValueError(f"the quaternion of camera {self.name!r} must not be 0")
        if self.target is not None and np.linalg.norm((self._keep("target", 3) - position)[:2]) < 1e-6:
            raise ValueError(
                f"the target of camera {self.name!r} is straight above or below it: give a quaternion instead; "
                "(1, 0, 0, 0) looks down, with the world's y upwards"
            )
        if not isinstance(self.fovy_deg, int | float) or not 0 < self.fovy_deg < 180:
            raise ValueError(f"fovy_deg of camera {self.name!r} must be between 0 and 180, got {self.fovy_deg!r}")

    def _keep(self, field: str, length: int) -> np.ndarray:
        """Check a field and keep it as a tuple, that nobody changes."""
        given = getattr(self, field)
        try:
            numbers = np.asarray(given, np.float64)
        except (TypeError, ValueError):
            numbers = np.zeros(0)
        if numbers.shape != (length,) or not np.isfinite(numbers).all():
            raise ValueError(f"{field} of camera {self.name!r} must be {length} finite numbers, got {given!r}")
        object.__setattr__(self, field, tuple(numbers.tolist()))
        return numbers

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3): columns are its axes to the right, upwards and backwards, in the world."""
        if self.quaternion is not None:
            unit, matrix = np.array(self.quaternion, np.float64), np.empty(9)
            mujoco.mju_normalize4(unit)
            mujoco.mju_quat2Mat(matrix, unit)
            return matrix.reshape(3, 3)
        assert self.target is not None
        backwards = np.subtract(self.position, self.target)
        right = np.cross([0.0, 0.0, 1.0], backwards)
        axes = np.stack([right, np.cross(backwards, right), backwards], axis=1)
        return axes / np.linalg.norm(axes, axis=0)


@dataclass(frozen=True, kw_only=True)
class DrawnCamera:
    """A camera of an env, and what it draws."""

    name: str
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    own: Camera | None = None
    """Where it stands; None: it is the model's."""
    depth: bool = False
    """Whether distances are drawn, too."""
    segmentation: bool = False
    """Whether bodies are told apart, too."""


def drawn_cameras(
    cameras: Sequence[str | Camera | Mapping[str, Any]],
    *,
    image_size: ImageSize | Mapping[str, ImageSize] = 256,
    depth: Sequence[str] = (),
    segmentation: Sequence[str] = (),
) -> tuple[DrawnCamera, ...]:
    """What the options of these names ask for.

    Raises:
        ValueError: Something that cannot be drawn; says what can.
    """
    given = [_read_camera(item) for item in cameras] if isinstance(cameras, list | tuple) else [None]
    names = [item.name if isinstance(item, Camera) else item for item in given]
    if None in names or len(set(names)) != len(names):
        raise ValueError(
            f"cameras must be any of {CAMERAS} ('robot0_eye_in_hand' is 'wrist') or a Camera of your own, each once, "
            f"or () for none, got {cameras!r}"
        )
    with_depth, with_segmentation = _chosen("depth", depth, names), _chosen("segmentation", segmentation, names)
    return tuple(
        DrawnCamera(
            name=str(name),
            height=height,
            width=width,
            own=item if isinstance(item, Camera) else None,
            depth=name in with_depth,
            segmentation=name in with_segmentation,
        )
        for item, name, (height, width) in zip(given, names, _sizes(image_size, names), strict=True)
    )


def _read_camera(item: Any) -> str | Camera | None:
    """A name as it is known here, or a camera of one's own; None for what is neither."""
    if isinstance(item, Mapping):
        try:
            return Camera(**item)
        except TypeError as error:
            raise ValueError(f"a Camera cannot be made of {dict(item)!r}: {error}") from None
    if isinstance(item, str):
        name = LIBERO_NAMES.get(item, item)
        return name if name in CAMERAS else None
    return item if isinstance(item, Camera) else None


def _chosen(option: str, chosen: Any, names: Sequence[Any]) -> list[str]:
    plain = isinstance(chosen, list | tuple) and all(isinstance(name, str) for name in chosen)
    known = [LIBERO_NAMES.get(name, name) for name in chosen] if plain else []
    if not plain or not set(known) <= set(names) or len(set(known)) != len(known):
        of_env = f"the env's cameras {tuple(names)}"
        raise ValueError(f"{option} must name any of {of_env}, each once, or () for none, got {chosen!r}")
    return known


def _sizes(image_size: Any, names: Sequence[Any]) -> list[tuple[int, int]]:
    if not isinstance(image_size, Mapping):
        size = _size(image_size)
        return [size for _ in names]
    sizes = {LIBERO_NAMES.get(name, name): _size(size) for name, size in image_size.items()}
    if sizes.keys() != set(names) or len(sizes) != len(image_size):
        raise ValueError(f"image_size must have a size for each of the env's cameras {tuple(names)}, got {dict(image_size)!r}")
    return [sizes[name] for name in names]


def _size(given: Any) -> tuple[int, int]:
    pair = given if isinstance(given, list | tuple) else (given, given)
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in pair)
    if len(pair) != 2 or not whole or min(pair) < LEAST_SIZE:
        raise ValueError(
            f"image_size must be an integer of at least {LEAST_SIZE}, or two (height, width), or a mapping from cameras to "
            f"either, got {given!r}"
        )
    return int(pair[0]), int(pair[1])
