"""`--env.type=vla_libero`: our envs, with the options, defaults and time limits of LeRobot's own `libero` env.

The only module that imports LeRobot.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode

from vla_envs.errors import MissingDependencyError
from vla_envs.isaac.env import IsaacEnv
from vla_envs.lerobot.env import LeRobotVectorEnv
from vla_envs.lerobot.observations import LAYOUTS, state_keys
from vla_envs.libero.arguments import choose_tasks
from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.suites import suite_tasks
from vla_envs.vector.base import CONTROL_HZ, ChunkedVectorEnv
from vla_envs.vector.cameras import LIBERO_NAMES
from vla_envs.vector.options import EnvOptions, check_choice, check_integer
from vla_envs.vector.spaces import image_key

try:
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.envs.configs import EnvConfig
    from lerobot.processor import LiberoProcessorStep, PolicyProcessorPipeline
except ImportError as error:
    raise MissingDependencyError(
        f"evaluating with LeRobot needs LeRobot and Python 3.12 or later: pip install 'vla-envs[lerobot]' ({error})"
    ) from error

TIME_LIMITS = {"libero_spatial": 280, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Control steps per episode in LeRobot's evaluations; libero_spatial's is 220 elsewhere."""
_OTHER_TIME_LIMIT = 500
_PICTURE_NAMES = {"agentview_image": "image", "robot0_eye_in_hand_image": "image2"}
_CONTROLS = {"relative": "osc_delta", "absolute": "osc_absolute"}


@EnvConfig.register_subclass("vla_libero")
@dataclass
class VlaLiberoEnv(EnvConfig):
    """LIBERO, and LIBERO-PRO where it is installed, for `lerobot-eval` and `lerobot-train`.

    Raises:
        ValueError: An option that cannot work; nothing was started.
    """

    task: str | None = "libero_10"
    """A suite, or several with commas between them."""
    task_ids: list[int] | None = None
    """Which tasks of each suite; None: all."""
    fps: int = CONTROL_HZ
    """Actions in a second of the robot's time; there is no other rate."""
    episode_length: int | None = None
    """Time limit in actions; None: LeRobot's own for the suite."""
    obs_type: str = "pixels_agent_pos"
    """What is observed: "pixels_agent_pos", "pixels", or "robot_state", as LeRobot's own env has it, for policies that bring a
    processor of their own for that env (X-VLA)."""
    n_action_steps: int = 1
    """The policy's option of this name, where it looks at one observation and then plays so many actions: no others are drawn.
    Leave it at 1 for a policy that looks at every step, or at several (temporal ensembling, `n_obs_steps`)."""
    render_mode: str = "rgb_array"
    camera_name: str = "agentview_image,robot0_eye_in_hand_image"
    """LIBERO's names, with commas between them; the first one is in the videos."""
    camera_name_mapping: dict[str, str] | None = None
    """Other names for the policy than `image` and `image2`."""
    init_states: bool = True
    """Stored initial states, each in its turn; false: random placements in the task's own regions, drawn from the seed."""
    hard_reset: bool = True
    """Says nothing here: resets are always what LeRobot's are with true."""
    observation_height: int = 360
    """Pixels."""
    observation_width: int = 360
    """Pixels."""
    control_mode: str = "relative"
    """"relative" or "absolute" end-effector poses."""
    detail: str = "full"
    """"full" draws what LIBERO draws, "fast" simplified scenes; see docs/environments.md."""
    device: str = "auto"
    """Where cameras draw: "auto", "cuda" or "cpu"."""
    scene_dir: str | None = None
    """Folder of exported scenes; then LIBERO need not be installed."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("obs_type", self.obs_type, LAYOUTS)
        check_choice("control_mode", self.control_mode, tuple(_CONTROLS))
        check_choice("render_mode", self.render_mode, ("rgb_array",))
        check_integer("n_action_steps", self.n_action_steps, least=1)
        if self.episode_length is not None:
            check_integer("episode_length", self.episode_length, least=1)
        if self.fps != CONTROL_HZ:
            raise ValueError(f"fps must be {CONTROL_HZ}, the rate of LIBERO's actions, got {self.fps}")
        if not self._suites:
            raise ValueError(f"task must name a suite, or several with commas between them, got {self.task!r}")
        EnvOptions(**self._options(self._suites[0]))
        shape = (self.observation_height, self.observation_width, 3)
        picture = PolicyFeature(type=FeatureType.VISUAL, shape=shape)
        state = {} if self.obs_type == "pixels" else {"agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(8,))}
        self.features = {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(7,)),
            **state,
            **{f"observation.images.{name}": picture for name in self._pictures.values()},  # names that may be recorded under
        }
        self.features_map = {name: name for name in self.features} | {name: "observation.state" for name in state}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What LeRobot's `create_envs` would pass to `gym.make`; the one below makes its envs itself."""
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, LeRobotVectorEnv]]:
        """Suite -> task id -> vector env of `n_envs` slots, which loads its task when it is first reset.

        Args:
            n_envs: Episodes that are played together, of one task.
            use_async_envs: Says nothing here: slots are always played side by side, in native threads.

        Raises:
            ValueError: There is no such suite or task; or no episode to play.
            MissingDependencyError: LIBERO is needed and is not installed.
        """
        check_integer("n_envs", n_envs, least=1)
        folder = None if self.scene_dir is None else Path(self.scene_dir)
        chosen = {}
        for suite in self._suites:
            tasks = suite_tasks(suite, scene_dir=folder)
            ids = choose_tasks(suite, tasks, task_ids=self.task_ids)
            chosen[suite] = {task_id: tasks[task_id].name for task_id in sorted(set(ids))}
        return {
            suite: {task_id: self._create_env(suite, task_id, name, n_envs) for task_id, name in names.items()}
            for suite, names in chosen.items()
        }

    def get_env_processors(self) -> tuple[Any, Any]:
        """None are needed, but for `robot_state`: that of LeRobot's own env, which turns pictures and computes the state."""
        steps = [LiberoProcessorStep()] if self.obs_type == "robot_state" else []
        return PolicyProcessorPipeline(steps=steps), PolicyProcessorPipeline(steps=[])

    def _create_env(self, suite: str, task_id: int, task_name: str, n_envs: int) -> LeRobotVectorEnv:
        options = self._options(suite)
        make: Callable[[], ChunkedVectorEnv] = (
            partial(LiberoEnv, n_envs, suite=suite, task_id=task_id, **options)
            if self.init_states
            else partial(IsaacEnv, n_envs, suite=suite, task_id=task_id, backend="mujoco", num_starts=None, **options)
        )
        return LeRobotVectorEnv(make, task_name=task_name, pictures=self._pictures, layout=self.obs_type)

    def _options(self, suite: str) -> dict[str, Any]:
        """Fields of `EnvOptions`."""
        limit = TIME_LIMITS.get(suite, _OTHER_TIME_LIMIT)
        return {
            "cameras": tuple(self._cameras),
            "image_size": (self.observation_height, self.observation_width),
            "state_keys": state_keys(self.obs_type),
            "control": _CONTROLS[self.control_mode],
            "chunk_size": self.n_action_steps,
            "detail": self.detail,
            "device": self.device,
            "scene_dir": self.scene_dir,
            "max_episode_steps": limit if self.episode_length is None else self.episode_length,
            "autoreset_mode": AutoresetMode.DISABLED,
        }

    @property
    def _suites(self) -> list[str]:
        return _parts(self.task or "")

    @property
    def _cameras(self) -> dict[str, str]:
        """Our names of cameras -> LeRobot's names of their pictures."""
        names = _PICTURE_NAMES | (self.camera_name_mapping or {})
        cameras = {}
        for name in _parts(self.camera_name):
            if not name.endswith("_image"):
                raise ValueError(f"camera_name must be LIBERO's, such as 'agentview_image', got {name!r}")
            if name not in names:
                raise ValueError(
                    f"camera_name_mapping must say what the policy calls {name!r}, got {self.camera_name_mapping!r}"
                )
            camera = name.removesuffix("_image")
            cameras[LIBERO_NAMES.get(camera, camera)] = names[name]
        if len(set(cameras.values())) < len(cameras):
            raise ValueError(f"each camera needs a name of its own, got {list(cameras.values())}")
        if not cameras:
            raise ValueError("camera_name must name a camera")
        return cameras

    @property
    def _pictures(self) -> dict[str, str]:
        """Keys of our observations -> LeRobot's names."""
        return {image_key(camera): name for camera, name in self._cameras.items()}


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
