"""A converted task: what an Isaac Lab environment of it is built from, beside the USD files that it names.

    <suite>_<task id>.json    names, goal, controller, cameras, lights, options
    <suite>_<task id>.npz     arrays: starts, controller constants

Bodies, joints and geoms are named as in the USD files: `<entity>/<body>`, `<entity>/<joint>`, `<entity>/<body>/<geom>`. Metres,
radians, newton metres; quaternions here are x y z w, as Isaac Lab has them. Needs neither MuJoCo nor Isaac Lab.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_envs.errors import SceneFormatError

FORMAT = 1
_ARRAY_GROUPS = ("controller", "starts")


@dataclass(frozen=True, kw_only=True)
class Part:
    """An entity and where it stands."""

    name: str
    kind: str
    """One of `entities.Kind`."""
    file: str
    """Path of its USD file, relative to the task's."""
    position: tuple[float, ...]
    """(3,): an object's place is that of its start, whatever this says."""
    orientation: tuple[float, ...]
    """(4,)."""
    root: str
    """Name of its first body; "" for the arena."""
    joints: tuple[str, ...]
    """Names of its joints that move."""
    damping: float
    """Of an object's free joint."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A place on a body that the goal or the controller looks at."""

    body: str
    """`<entity>/<body>`; "" for the world."""
    position: tuple[float, ...]
    """(3,) in the body's frame; in the world's, where that body belongs to the arena."""
    orientation: tuple[float, ...]
    """(4,)."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A camera. It looks along its own -z, with y up."""

    frame: Frame
    fovy: float
    """Degrees, from bottom to top."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """A light as MuJoCo has it: colours add up, and nothing is converted to linear space."""

    directional: bool
    position: tuple[float, ...]
    direction: tuple[float, ...]
    diffuse: tuple[float, ...]
    ambient: tuple[float, ...]
    specular: tuple[float, ...]
    attenuation: tuple[float, ...]
    """(3,): constant, linear and quadratic in the distance."""
    cutoff: float
    """Degrees from its axis at which a spot ends; 180 for a light without one."""
    exponent: float
    follows_camera: bool
    """MuJoCo's headlight: it sits in the camera, and looks where the camera looks."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`libero.goals.Goal` in names: bodies and sites are indices into `frames`, addresses in qpos indices into `joints`."""

    predicates: tuple[dict[str, Any], ...]
    """As `goal_to_json` writes them."""
    contact_pairs: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Pairs of sets of geoms, `<entity>/<body>/<geom>`."""
    joints: tuple[str, ...]
    """`<entity>/<joint>`."""


@dataclass(frozen=True, kw_only=True)
class Controller:
    """`OscConstants` in names, and what a controller remembers when an episode begins."""

    arm_joints: tuple[str, ...]
    """7, `<entity>/<joint>`."""
    finger_joints: tuple[str, ...]
    """2."""
    grip_frame: int
    """Index into `frames`: what the controller moves."""
    hand: str
    """`<entity>/<body>` whose orientation is observed."""
    gripper_speed: float
    substeps: int
    initial_joints: np.ndarray
    kp: np.ndarray
    kd: np.ndarray
    input_min: np.ndarray
    input_max: np.ndarray
    output_min: np.ndarray
    output_max: np.ndarray
    torque_min: np.ndarray
    torque_max: np.ndarray
    gripper_bias: np.ndarray
    gripper_weight: np.ndarray
    finger_gain: np.ndarray
    """(2,): a finger is pushed by gain * (command - position), within +-`finger_force`."""
    finger_force: np.ndarray
    """(2,)."""
    hand_quaternion: np.ndarray
    """(4,) w x y z of the hand with the arm at `initial_joints`, with MuJoCo's sign."""
    goal_orientation: np.ndarray
    """(3, 3): kept until an action asks for a rotation."""
    fingers: np.ndarray
    """(2,): the fingers' commands in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """S states in which episodes begin: at rest, after LIBERO's settling steps, without collisions."""

    joint_positions: np.ndarray
    """(S, J) of all moving joints, in the order of the parts and their joints."""
    joint_speeds: np.ndarray
    """(S, J)."""
    objects: np.ndarray
    """(S, O, 13) of the parts that are objects: position, orientation, linear and angular velocity, in the world's frame."""
    mujoco_states: np.ndarray
    """(S, 1 + nq + nv): the same as MuJoCo's [time, qpos, qvel] in the compiled scene."""


@dataclass(frozen=True, kw_only=True)
class ConvertedTask:
    """One task."""

    suite: str
    task_id: int
    name: str
    instruction: str
    max_episode_steps: int
    parts: tuple[Part, ...]
    """The arena first."""
    frames: tuple[Frame, ...]
    goal: Goal
    controller: Controller
    views: dict[str, View]
    """By camera: "agentview", "wrist"."""
    lights: tuple[Light, ...]
    looks: dict[str, tuple[float, float, float]]
    """By semantic label of type `look`: MuJoCo's emission, specular and shininess."""
    background: tuple[float, ...]
    """(3,) in [0, 1]: where nothing is."""
    options: dict[str, float]
    """MuJoCo's: timestep, impratio, density, viscosity, iterations, ls_iterations, tolerance, elliptic (0 or 1)."""
    starts: Starts
    folder: Path
    """Where it was read from; the parts' files are relative to it."""

    @property
    def file(self) -> Path:
        """Its own file."""
        return task_file(self.folder, self.suite, self.task_id)


def task_file(folder: Path, suite: str, task_id: int) -> Path:
    """The file of a task."""
    return folder / f"{suite}_{task_id}.json"


def converted_tasks(folder: Path) -> dict[tuple[str, int], Path]:
    """The tasks in a folder, by suite and task id.

    Raises:
        SceneFormatError: It is not a folder of converted tasks.
    """
    found = {}
    for file in sorted(folder.glob("*.json")):
        suite, _, task_id = file.stem.rpartition("_")
        if suite and task_id.isdigit() and file.with_suffix(".npz").exists():
            found[suite, int(task_id)] = file
    if not found:
        raise SceneFormatError(
            f"{folder} holds no converted tasks: make them with python -m vla_envs.isaac convert --suite SUITE --out {folder}"
        )
    return dict(sorted(found.items()))


def save_task(task: ConvertedTask) -> Path:
    """Write a task into its folder."""
    file = task.file
    header: dict[str, Any] = {"format": FORMAT}
    arrays: dict[str, np.ndarray] = {}
    for field in fields(task):
        value = getattr(task, field.name)
        if field.name in _ARRAY_GROUPS:
            values = {name.name: getattr(value, name.name) for name in fields(value)}
            arrays |= {f"{field.name}.{name}": array for name, array in values.items() if isinstance(array, np.ndarray)}
            header[field.name] = {name: plain for name, plain in values.items() if not isinstance(plain, np.ndarray)}
        elif field.name != "folder":
            header[field.name] = value
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    text = json.dumps(header, indent=1, default=asdict)
    for path, content in ((file.with_suffix(".npz"), packed.getvalue()), (file, text.encode())):
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(content)
        os.replace(draft, path)
    return file


def load_task(folder: Path, suite: str, task_id: int) -> ConvertedTask:
    """Read a task.

    Raises:
        SceneFormatError: It is not there, damaged, or of another format.
    """
    file = task_file(folder, suite, task_id)
    if not file.exists():
        known = ", ".join(f"{name} {number}" for name, number in converted_tasks(folder))
        raise SceneFormatError(f"{folder} holds no task {task_id} of {suite}: it has {known}")
    return load_task_file(str(file))


@lru_cache(maxsize=8)
def load_task_file(path: str) -> ConvertedTask:
    """Read a task from its own file; what is asked for again is read once.

    Raises:
        SceneFormatError: It is damaged, or of another format.
    """
    file = Path(path)
    try:
        header = json.loads(file.read_text())
        if header.pop("format") != FORMAT:
            raise SceneFormatError(f"{file} has another format than this version reads: convert the task again")
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in packed.files}
        plain = {name: header[name] for name in ("suite", "task_id", "name", "instruction", "max_episode_steps", "options")}
        return ConvertedTask(
            **plain,
            parts=tuple(_build(Part, part) for part in header["parts"]),
            frames=tuple(_build(Frame, frame) for frame in header["frames"]),
            goal=Goal(
                predicates=tuple(header["goal"]["predicates"]),
                contact_pairs=tuple((tuple(one), tuple(other)) for one, other in header["goal"]["contact_pairs"]),
                joints=tuple(header["goal"]["joints"]),
            ),
            controller=_build(Controller, header["controller"] | _group(arrays, "controller")),
            views={name: View(frame=_build(Frame, view["frame"]), fovy=view["fovy"]) for name, view in header["views"].items()},
            lights=tuple(_build(Light, light) for light in header["lights"]),
            looks={label: tuple(numbers) for label, numbers in header["looks"].items()},
            background=tuple(header["background"]),
            starts=_build(Starts, _group(arrays, "starts")),
            folder=file.parent,
        )
    except SceneFormatError:
        raise
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise SceneFormatError(f"{file} is damaged or not a converted task: {error!r}") from error


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _group(arrays: Mapping[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{group}."): array for name, array in arrays.items() if name.startswith(f"{group}.")}
