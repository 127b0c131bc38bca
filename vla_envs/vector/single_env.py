"""One slot of a vector env as a plain `gymnasium.Env`."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from vla_envs.errors import NotResetError
from vla_envs.vector.arguments import check_shape
from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.infos import of_slot
from vla_envs.vector.options import RENDER_MODES
from vla_envs.vector.spec import plain_spec


class SingleEnv(gym.Env):
    """A vector env of one slot, without the leading axis.

    Args:
        envs: Made with `AutoresetMode.DISABLED`; this env closes it.
    """

    _spec: EnvSpec | None = None

    def __init__(self, envs: ChunkedVectorEnv) -> None:
        assert envs.num_envs == 1
        assert envs.autoreset_mode == AutoresetMode.DISABLED
        self._envs = envs
        self._over = False
        self.metadata = {"render_modes": envs.metadata["render_modes"], "render_fps": envs.metadata["render_fps"]}
        self.render_mode = envs.render_mode
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self.suite, self.chunk_size = envs.suite, envs.chunk_size
        self.mirrored_images = envs.mirrored_images
        self.task_ids, self.num_init_states, self.instructions = envs.task_ids, envs.num_init_states, envs.instructions

    @property
    def max_episode_steps(self) -> int:
        """Time limit in control steps; may be set."""
        return self._envs.max_episode_steps

    @max_episode_steps.setter
    def max_episode_steps(self, limit: int) -> None:
        self._envs.set_attr("max_episode_steps", limit)

    @property
    def task_description(self) -> str:
        """What the robot is asked to do in the present episode; see `ChunkedVectorEnv.task_description`."""
        return self._envs.task_description[0]

    @property
    def task_id(self) -> int:
        """Task of the present episode; -1 before the first."""
        return self._envs.get_attr("task_id")[0]

    @property
    def init_state_id(self) -> int:
        """Stored initial state of the present episode; -1 before the first, and for a state of its own."""
        return self._envs.get_attr("init_state_id")[0]

    task = instruction = task_description
    _max_episode_steps = max_episode_steps
    """Other names of the same, which LeRobot and others ask for."""

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """How the env was made; Gymnasium sets it."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = plain_spec(spec)

    @property
    def renderer(self) -> str:
        """What draws; see `ChunkedVectorEnv.renderer`."""
        return self._envs.renderer

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; see `ChunkedVectorEnv.reset`."""
        super().reset(seed=seed)
        observation, info = self._envs.reset(seed=seed, options=options)
        self._over = False
        return _first(observation), of_slot(info, 0)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Play one chunk (K, 7) or a shorter one, or one action (7,); see `ChunkedVectorEnv.step`."""
        if self._over:
            raise NotResetError("step was called on a finished episode: call reset() first")
        check_shape("the action", np.shape(action), self.action_space.shape, chunk_size=self.chunk_size)  # type: ignore[arg-type]
        actions = action[None] if hasattr(action, "is_cuda") else np.asarray(action)[None]  # tensors stay where they are
        observation, reward, terminated, truncated, info = self._envs.step(actions)
        self._over = bool(terminated[0] or truncated[0])
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), of_slot(info, 0)

    def get_state(self) -> np.ndarray:
        """[time, qpos, qvel]."""
        return self._envs.get_state()[0]

    def set_state(self, state: np.ndarray) -> dict[str, Any]:
        """Put the physics into [time, qpos, qvel]; returns the observation there."""
        return _first(self._envs.set_state([state]))

    def render(self) -> np.ndarray | None:
        """(H, W, 3) uint8, upright; None without `render_mode`."""
        pictures = self._envs.render()
        return None if pictures is None else pictures[0]

    def camera_intrinsics(self, camera: str) -> np.ndarray:
        """(3, 3); see `Calibration.camera_intrinsics`."""
        return self._envs.camera_intrinsics(camera)[0]

    def camera_extrinsics(self, camera: str) -> np.ndarray:
        """(4, 4); see `Calibration.camera_extrinsics`."""
        return self._envs.camera_extrinsics(camera)[0]

    def body_names(self) -> tuple[str, ...]:
        """Names of bodies by id; see `Calibration.body_names`."""
        return self._envs.body_names()

    def close(self) -> None:
        """Free everything."""
        self._envs.close()


def _first(observation: dict[str, Any]) -> dict[str, Any]:
    return {key: value[0] for key, value in observation.items()}


def maker_of_single(env_class: type[ChunkedVectorEnv]) -> Callable[..., SingleEnv]:
    """The entry point of a vector env's class for `gymnasium.make`.

    Args:
        env_class: Takes `EnvOptions`.
    """

    def make(*, time_limit: int | None = None, **arguments: Any) -> SingleEnv:
        if "autoreset_mode" in arguments:
            raise ValueError("a single env never resets itself: leave out autoreset_mode, which make_vec takes")
        options = {"autoreset_mode": AutoresetMode.DISABLED, "max_episode_steps": time_limit} | arguments
        return SingleEnv(env_class(1, **options))

    make.__doc__ = f"""One env for `gymnasium.make`: `{env_class.__name__}` with `time_limit` for `max_episode_steps`.

    `gymnasium.make` keeps an argument called `max_episode_steps` to itself, and counts calls of `step` with it (chunks, if
    there is a `chunk_size`). The limit here counts control steps, and holds as well.
    """
    make.metadata = {"render_modes": list(RENDER_MODES)}  # type: ignore[attr-defined] # Gymnasium looks for wrappers to add
    return make
