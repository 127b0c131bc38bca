"""The arguments that all envs of this package take: named, documented and checked here, and nowhere else.

`takes_options` gives them to a constructor that is written with `**options`: what users see of it, its signature and its
documentation, names every one of them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode

from vla_envs.vector.arrays import ARRAYS
from vla_envs.vector.cameras import Camera, DrawnCamera, ImageSize, drawn_cameras
from vla_envs.vector.control import CONTROL_MODES, ControlMode
from vla_envs.vector.gl_context import Device
from vla_envs.vector.randomization import Randomization, read_randomization
from vla_envs.vector.robot_state import check_state_keys

RENDER_MODES = ("rgb_array",)

_Env = TypeVar("_Env", bound=type)


def _meaning(text: str) -> dict[str, str]:
    return {"meaning": text}


@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """How an env plays, draws and ends its episodes.

    Raises:
        ValueError: An option that cannot work.
    """

    chunk_size: int | None = field(
        default=None, metadata=_meaning("K: `step` takes (N, K, 7) and plays up to K actions; None: it takes (N, 7).")
    )
    image_size: ImageSize | Mapping[str, ImageSize] = field(
        default=256,
        metadata=_meaning("Pixels of pictures: height and width in one, (height, width), or a mapping from cameras to either."),
    )
    cameras: Sequence[str | Camera | Mapping[str, Any]] = field(
        default=("agentview",),
        metadata=_meaning(
            'Any of "agentview" (observed as `image`), "wrist" (`wrist_image`) and LIBERO\'s others, such as "birdview" '
            "(`birdview_image`), or a `vla_envs.Camera` of one's own; none draws nothing."
        ),
    )
    depth: Sequence[str] = field(
        default=(),
        metadata=_meaning("Cameras whose distances are observed, too, as `{camera}_depth`: metres along their axis."),
    )
    segmentation: Sequence[str] = field(
        default=(),
        metadata=_meaning(
            "Cameras whose bodies are observed, too, as `{camera}_segmentation`: ids, whose names `body_names` gives."
        ),
    )
    state_keys: Sequence[str] = field(
        default=(),
        metadata=_meaning(
            'Readings of the robot to observe beside `state`, by robosuite\'s names, such as "robot0_joint_pos"; see '
            "docs/environments.md."
        ),
    )
    control: str = field(
        default="osc_delta",
        metadata=_meaning(
            "What an action says, as robosuite's controllers take it: \"osc_delta\" a change of the end-effector's pose, as "
            'LIBERO has it; "osc_absolute" its pose in the world (m, axis-angle in rad); "joint_position" a change of seven '
            "joints. The gripper comes last in each."
        ),
    )
    detail: str = field(
        default="full", metadata=_meaning('"full" draws what LIBERO draws, "fast" simplified meshes and smaller textures.')
    )
    quality: str = field(
        default="fast",
        metadata=_meaning(
            'Of pictures that Warp draws: "fast", or "match", which looks like OpenGL and costs more. OpenGL has one quality.'
        ),
    )
    device: Device = field(
        default="auto",
        metadata=_meaning(
            '"cuda" draws on the GPU, or in software with a warning where there is none; "cpu" draws in software; "auto" '
            'draws on what there is. Warp simulates there, too, and refuses "cuda" without a GPU. The attribute `renderer`, '
            "the info of `reset` and the log say what draws."
        ),
    )
    arrays: str = field(
        default="numpy",
        metadata=_meaning(
            '"torch": pictures and robot states are PyTorch tensors, on the GPU where Warp simulates there; `step` takes them.'
        ),
    )
    render_every: int | None = field(
        default=None,
        metadata=_meaning(
            'n: `info["frames"]` of each step has pictures of the first camera within the chunk, after every n control steps '
            "and after the last; None: none. `set_attr` changes it, for single slots too. Not on Warp."
        ),
    )
    max_episode_steps: int | None = field(
        default=None, metadata=_meaning("Time limit in control steps, settling not counted; None: the suite's own.")
    )
    autoreset_mode: AutoresetMode | str = field(
        default=AutoresetMode.NEXT_STEP,
        metadata=_meaning(
            "What happens to a slot whose episode is over, as in Gymnasium. `DISABLED`: it stays as it is, costs nothing, and "
            'reports no reward and no steps, until `reset` names it in `options["reset_mask"]`.'
        ),
    )
    randomization: Randomization | Mapping[str, Any] | None = field(
        default=None,
        metadata=_meaning(
            "A `vla_envs.Randomization`, or a mapping with its fields: where fixtures stand, lights, colours, textures and "
            "cameras, drawn anew for each episode from its seed; None: all is as in the scene. Not on Warp."
        ),
    )
    sleep: bool = field(
        default=False,
        metadata=_meaning(
            "Objects that lie still, and whose contacts the goal does not ask about, are not simulated until something touches "
            "them: physics takes half the time, but is not LIBERO's to the last digit. Not on Warp."
        ),
    )
    settle_steps: int = field(default=10, metadata=_meaning("Control steps without motion at the start of each episode."))
    scene_dir: str | Path | None = field(
        default=None, metadata=_meaning("Folder of exported scenes; then LIBERO need not be installed.")
    )
    num_threads: int | None = field(
        default=None, metadata=_meaning("Threads that step physics; None: one per core that this process may use.")
    )
    render_mode: str | None = field(
        default=None, metadata=_meaning('"rgb_array", or None. `gymnasium.make` takes "rgb_array_list" and "human" too.')
    )

    def __post_init__(self) -> None:
        check_integer("settle_steps", self.settle_steps, least=0)
        limit = "time limit (max_episode_steps)"
        optional = {
            "chunk_size": self.chunk_size,
            limit: self.max_episode_steps,
            "num_threads": self.num_threads,
            "render_every": self.render_every,
        }
        for name, value in optional.items():
            if value is not None:
                check_integer(name, value, least=1)
        if self.render_every is not None and not self.drawn_cameras:
            raise ValueError(f"render_every needs a camera, got render_every={self.render_every} and cameras={self.cameras!r}")
        _ = self.drawn_cameras
        _ = self.drawn_randomization
        check_state_keys(self.state_keys)
        if not isinstance(self.sleep, bool):
            raise ValueError(f"sleep must be True or False, got {self.sleep!r}")
        check_choice("control", self.control, tuple(CONTROL_MODES))
        check_choice("detail", self.detail, ("full", "fast"))
        check_choice("quality", self.quality, ("fast", "match"))
        check_choice("arrays", self.arrays, ARRAYS)
        check_choice("device", self.device, ("auto", "cuda", "cpu"))
        if not isinstance(self.autoreset_mode, AutoresetMode):
            check_choice("autoreset_mode", self.autoreset_mode, tuple(mode.value for mode in AutoresetMode))
        check_choice("render_mode", self.render_mode, (None, *RENDER_MODES))

    @property
    def drawn_cameras(self) -> tuple[DrawnCamera, ...]:
        """What `cameras`, `image_size`, `depth` and `segmentation` ask for, in the order of `cameras`."""
        return drawn_cameras(self.cameras, image_size=self.image_size, depth=self.depth, segmentation=self.segmentation)

    @property
    def control_mode(self) -> ControlMode:
        """What `control` names."""
        return CONTROL_MODES[self.control]

    def simulation(self, *, engine: str, **changed: bool) -> dict[str, str | int]:
        """What simulates and draws, and how, for the record of an evaluation; of what may be changed, what is."""
        so = {name: True for name, is_so in changed.items() if is_so}
        return {"engine": engine, "detail": self.detail, "settle_steps": self.settle_steps, "control": self.control, **so}

    @property
    def drawn_randomization(self) -> Randomization | None:
        """What `randomization` asks for."""
        return read_randomization(self.randomization)

    @property
    def scene_folder(self) -> Path | None:
        """`scene_dir` as a path."""
        return None if self.scene_dir is None else Path(self.scene_dir)


def read_options(given: Mapping[str, Any], of: Callable[..., Any]) -> EnvOptions:
    """The options among the arguments of `of`, which has others of its own.

    Raises:
        TypeError: There is no such argument; the message names those that there are.
        ValueError: An option that cannot work.
    """
    accepted = [option.name for option in fields(EnvOptions)]
    known = dict.fromkeys([name for name in inspect.signature(of).parameters if name not in ("self", "options")] + accepted)
    for name in given:
        if name not in accepted:
            similar = get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"there are {', '.join(known)}"
            raise TypeError(f"unexpected keyword argument {name!r}: {hint}")
    return EnvOptions(**given)


def takes_options(env_class: _Env) -> _Env:
    """Class decorator: shows the fields of `EnvOptions` in place of `**options`, in signature and documentation."""
    constructor = vars(env_class)["__init__"]
    signature = inspect.signature(constructor)
    named = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.type)
        for option in fields(EnvOptions)
    ]
    constructor.__signature__ = signature.replace(parameters=[*named, *options])
    env_class.__doc__ = _with_options(inspect.cleandoc(env_class.__doc__ or ""))
    return env_class


def _with_options(documentation: str) -> str:
    """The documentation with the options at the end of its "Args"."""
    lines = documentation.splitlines()
    after = next((place for place in range(lines.index("Args:"), len(lines)) if not lines[place].strip()), len(lines))
    wrap = TextWrapper(width=120, initial_indent="    ", subsequent_indent="        ").wrap
    meanings = [line for option in fields(EnvOptions) for line in wrap(f"{option.name}: {option.metadata['meaning']}")]
    return "\n".join([*lines[:after], *meanings, *lines[after:]])


def is_integer(value: Any) -> bool:
    """Whether it is a whole number by its type, and not a truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_integer(name: str, value: Any, *, least: int) -> None:
    """Raise `ValueError` for what is not an integer from `least` upwards."""
    if not is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """Raise `ValueError` for what is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
