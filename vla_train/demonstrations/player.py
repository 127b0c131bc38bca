"""Plays attempts with an expert, and draws those that are kept.

    play:  env without cameras: expert -> action -> step, until the episode ends
    draw:  env with cameras:    the same actions from the same start, one picture each

An env is deterministic, so both are the same episode, to the pixel: this is checked with the states. Failures cost no picture.
An env that does not take `cameras` draws while it plays.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from vla_train.config import EnvConfig
from vla_train.demonstrations.attempts import Attempt
from vla_train.demonstrations.config import CollectConfig
from vla_train.demonstrations.expert import ExpertGaveUpError, expert_maker, giving_up, label_of
from vla_train.demonstrations.layout import AS_PLAYED, Features
from vla_train.demonstrations.pictures import encode_pictures
from vla_train.demonstrations.writer import Demonstration, Origin
from vla_train.envs.factory import make_env_shard, vector_arguments
from vla_train.envs.observations import STATE, is_image
from vla_train.envs.shard import EnvFaultError
from vla_train.envs.vector import VectorShard
from vla_train.types import IMAGE, EnvDescription, EpisodeSpec

_log = logging.getLogger(__name__)
WRIST = "wrist_image"
_DEFAULT_FPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What came of an attempt."""

    succeeded: bool
    length: int
    """Actions played; 0 where the expert gave up."""
    demonstration: Demonstration | None
    """None where it is not kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Course:
    """An episode of T steps, without pictures."""

    instruction: str
    executed: np.ndarray
    """(T, A)."""
    labels: np.ndarray
    """(T, A)."""
    states: np.ndarray | None
    """(T, D)."""
    frames: dict[str, np.ndarray]
    """(T, H, W, 3) of each camera that drew on the way."""
    succeeded: bool


class Player:
    """One env that plays, and one that draws; both are made when first needed.

    Args:
        config: Env, expert, noise, and what is kept.

    Raises:
        ValueError: The env cannot be used, brings no expert, or draws no image; the message says what to change.
    """

    def __init__(self, config: CollectConfig) -> None:
        self._config = config
        env = config.played_env
        self._draws_apart = _takes_cameras(env)
        if config.wrist_camera and self._draws_apart:
            env = replace(env, kwargs={**env.kwargs, "cameras": '["agentview", "wrist"]'})
        self._drawing_config = env
        if self._draws_apart:
            env = replace(env, kwargs={**env.kwargs, "cameras": "[]"})
        self._playing = _make_shard(env)
        self._drawing: VectorShard | None = None if self._draws_apart else self._playing
        try:
            self._make_expert = expert_maker(self._playing.env.unwrapped, config.expert)
            self.description: EnvDescription = self._playing.description
        except BaseException:
            self.close()
            raise

    def describe(self) -> tuple[Features, dict[str, Any]]:
        """What its frames hold, and the env's conventions as JSON data.

        Raises:
            ValueError: It draws no image.
        """
        drawing, env = self._drawing_shard(), self._playing.env
        observed = drawing.description.observations
        if IMAGE not in observed or not is_image(observed[IMAGE]):
            raise ValueError(f"{self._config.env.id} observes no image {self._config.env.image_key!r}: set env.image_key")
        wanted = (IMAGE, WRIST) if self._config.wrist_camera else (IMAGE,)
        if missing := [key for key in wanted if key not in observed]:
            raise ValueError(f"{self._config.env.id} observes no {missing[0]}: leave out --wrist-camera")
        state = observed.get(STATE)
        features = Features(
            fps=round(env.metadata.get("render_fps", _DEFAULT_FPS)),
            robot_type=getattr(env.unwrapped, "robot_type", None),
            action_dim=drawing.description.action_dim,
            state_dim=state.shape[0] if state is not None and len(state.shape) == 1 else None,
            images={key: observed[key].shape for key in wanted},  # type: ignore[misc]
        )
        return features, {
            "mirrored_images": drawing.description.mirrored_images,
            "actions": AS_PLAYED,
            "gripper": getattr(env.unwrapped, "gripper_convention", None),
            "control_mode": getattr(env.unwrapped, "control_mode", None),
        }

    def check_task(self, spec: EpisodeSpec) -> None:
        """Refuse a task that the expert cannot do.

        Raises:
            ValueError: Its reason.
        """
        self._playing.reset([0], [spec], ())
        self._make_expert(0, noise=self._config.noise, seed=spec.seed)

    def play(self, attempt: Attempt) -> Played:
        """Play one attempt.

        Raises:
            EnvFaultError: The env is not deterministic, or returns what it must not.
        """
        try:
            course = self._play(attempt.spec)
        except ExpertGaveUpError as error:
            start = f"task {attempt.spec.task_id}, initial state {attempt.spec.init_state_id}"
            _log.warning("%s: the expert gives up, which counts as a failure: %s", start, error)
            return Played(succeeded=False, length=0, demonstration=None)
        kept = course.succeeded or self._config.keep_failures
        return Played(
            succeeded=course.succeeded,
            length=len(course.executed),
            demonstration=self._demonstration(course, attempt) if kept else None,
        )

    def close(self) -> None:
        """Close both envs."""
        self._playing.close()
        if self._drawing not in (None, self._playing):
            self._drawing.close()  # type: ignore[union-attr]

    def _play(self, spec: EpisodeSpec) -> _Course:
        shard = self._playing
        low, high = shard.description.action_low, shard.description.action_high
        pictures = () if self._draws_apart else self._pictures()
        keys = (*pictures, *self._state())
        result = shard.reset([0], [spec], keys)
        instruction = result.instructions[0]
        with giving_up():
            expert = self._make_expert(0, noise=self._config.noise, seed=spec.seed)
        executed, labels, succeeded = [], [], False
        seen: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        while True:
            for key in keys:
                seen[key].append(result.observations[key][0].copy())
            with giving_up():
                acted = expert.act()
            action = _in_bounds(acted, low, high)
            executed.append(action)
            labels.append(_in_bounds(label_of(expert, action), low, high))
            result = shard.step(action[None, None], np.ones(1, bool), keys)
            succeeded |= bool(result.succeeded[0])
            if result.terminated[0] or result.truncated[0]:
                break
        return _Course(
            instruction=instruction,
            executed=np.array(executed),
            labels=np.array(labels),
            states=np.array(seen[STATE]) if STATE in seen else None,
            frames={key: np.array(seen[key]) for key in pictures},
            succeeded=succeeded,
        )

    def _demonstration(self, course: _Course, attempt: Attempt) -> Demonstration:
        frames = course.frames or self._draw(course, attempt.spec)
        spec = attempt.spec
        return Demonstration(
            instruction=course.instruction,
            actions=course.labels.astype(np.float32),
            states=course.states,
            pictures={key: encode_pictures(pictures) for key, pictures in frames.items()},
            origin=Origin(
                suite=self.description.suite,
                task_id=spec.task_id,
                init_state_id=spec.init_state_id,
                seed=spec.seed,
                attempt=attempt.number,
                success=course.succeeded,
            ),
        )

    def _draw(self, course: _Course, spec: EpisodeSpec) -> dict[str, np.ndarray]:
        """Play the actions once more, and look."""
        shard, length = self._drawing_shard(), len(course.executed)
        keys = (*self._pictures(), *self._state())
        frames = {key: np.empty((length, *shard.description.observations[key].shape), np.uint8) for key in self._pictures()}
        result = shard.reset([0], [spec], keys)
        for step in range(length):
            if course.states is not None and not np.array_equal(result.observations[STATE][0], course.states[step]):
                raise EnvFaultError(f"{self._config.env.id} played the same actions from the same start in two ways")
            for key, pictures in frames.items():
                pictures[step] = result.observations[key][0]
            if step + 1 < length:
                result = shard.step(course.executed[step][None, None], np.ones(1, bool), keys)
        return frames

    def _drawing_shard(self) -> VectorShard:
        if self._drawing is None:
            self._drawing = _make_shard(self._drawing_config)
        return self._drawing

    def _pictures(self) -> Sequence[str]:
        return (IMAGE, WRIST) if self._config.wrist_camera else (IMAGE,)

    def _state(self) -> Sequence[str]:
        spec = self._playing.description.observations.get(STATE)
        return (STATE,) if spec is not None and len(spec.shape) == 1 else ()


def _in_bounds(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(A,) float64 that float32 holds: what is played is what is recorded, to the bit."""
    return np.clip(action, low, high).astype(np.float32).astype(np.float64)


def _takes_cameras(config: EnvConfig) -> bool:
    """Whether the env can be made without any: then playing costs no drawing."""
    if "cameras" in config.kwargs:
        return False  # the user's choice
    try:
        spec = gym.spec(config.id.rpartition(":")[2])
    except gym.error.Error:
        return False  # making it says what is wrong
    return spec.vector_entry_point is not None and "cameras" in vector_arguments(spec)


def _make_shard(config: EnvConfig) -> VectorShard:
    shard = make_env_shard(config, chunk_size=1)
    if not isinstance(shard, VectorShard):
        shard.close()
        raise ValueError(f"{config.id} is no vector env, which demonstrations need: set env.kwargs vectorization_mode=sync")
    return shard
