"""A Gymnasium vector env of N slots that play chunks of actions on an engine.

    reset: pick starts -> restore or settle them -> observe
    step:  check actions -> play each live slot's chunk until its goal, its time limit or a fault -> observe -> autoreset

Invariants: Actions are checked before anything moves. Cameras draw once per slot and call, but where a slot is filmed. A slot
whose episode is over does not move until it is reset. What a slot does depends on nothing but its starts and actions. Calls
from several threads take turns, and so does `close`. Knows no simulator and no benchmark.
"""

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from vla_envs.errors import NotResetError
from vla_envs.vector.arguments import read_actions, read_reset_options, read_seeds, read_states
from vla_envs.vector.arrays import as_float32, giver, on_host
from vla_envs.vector.calibration import Calibration
from vla_envs.vector.control import CONTROL_MODES
from vla_envs.vector.conversion import convert_texts_to_themselves
from vla_envs.vector.engine import Engine, StepResult
from vla_envs.vector.filming import Filming, frames_info
from vla_envs.vector.infos import with_masks
from vla_envs.vector.options import RENDER_MODES, EnvOptions
from vla_envs.vector.remade import Remade
from vla_envs.vector.robot_state import ROBOT_STATE
from vla_envs.vector.settled import SettledStarts
from vla_envs.vector.slot_attributes import SlotAttributes
from vla_envs.vector.spaces import action_space, depth_key, image_key, observation_space, segmentation_key
from vla_envs.vector.spec import plain_spec
from vla_envs.vector.start import Start

CONTROL_HZ = 20
"""Control steps in a second of the robot's time."""


class ChunkedVectorEnv(Remade, SlotAttributes, Calibration, Filming, gym.vector.VectorEnv, ABC):
    """N slots of robot manipulation with chunked actions.

    Shape letters: N slots, K actions of a chunk, A numbers of an action, H x W pixels.

    Args:
        num_envs: N.
        engine: Physics and cameras; this env closes it.
        instructions: Task id -> instruction, for every task that may come.
        time_limit: That of the task in control steps; `options.max_episode_steps` goes before it.
        options: All else.
    """

    _spec: EnvSpec | None = None
    _slot_methods: tuple[str, ...] = ("body_names",)
    suite: str | None = None
    num_init_states: Mapping[int, int] = {}
    mirrored_images = True
    """Whether observed pictures are mirrored left to right, as in the published LIBERO sets; those of `render` are not."""
    simulation: Mapping[str, str | int] = {}
    """What simulates and draws, and how, for the record of an evaluation."""
    robot_type = "panda"
    control_mode = CONTROL_MODES["osc_delta"].meaning
    gripper_convention = "-1 open, +1 close"

    def __init__(
        self,
        num_envs: int,
        *,
        engine: Engine,
        instructions: Mapping[int, str],
        time_limit: int,
        options: EnvOptions,
    ) -> None:
        convert_texts_to_themselves()
        self._engine = engine
        self._busy = threading.RLock()
        """Held by whatever uses the engine."""
        self.autoreset_mode = AutoresetMode(options.autoreset_mode)
        self.num_envs = num_envs
        self.instructions = dict(instructions)
        self.task_ids = tuple(instructions)
        self.max_episode_steps = options.max_episode_steps or time_limit
        self.chunk_size = options.chunk_size
        self.control, self.control_mode = options.control, options.control_mode.meaning
        self.render_mode = options.render_mode
        fps = CONTROL_HZ / (options.chunk_size or 1)  # of what `render` shows after each step
        self.metadata = {
            "reports_success": True,
            "autoreset_mode": self.autoreset_mode,
            "render_modes": list(RENDER_MODES),
            "render_fps": fps,
        }
        self._settled = SettledStarts(engine, settle_steps=options.settle_steps)

        self._cameras = {camera.name: camera for camera in options.drawn_cameras}
        self.render_every = (options.render_every,) * num_envs
        self._give = giver(options.arrays)
        self.state_keys = tuple(options.state_keys)
        self.single_observation_space = observation_space(
            tuple(self._cameras.values()), self.instructions.values(), self.state_keys
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = action_space(options.chunk_size, options.control_mode)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._starts: list[Start | None] = [None] * num_envs
        """None for a slot that was never reset, or that an error has left in an unknown state."""
        self._slot_rngs: list[np.random.Generator | None] = [None] * num_envs
        self._episodes = np.zeros(num_envs, np.int64)
        """Episodes begun in each slot since it was seeded."""
        self._over = np.zeros(num_envs, bool)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs)
        self._began_at = np.zeros(num_envs)

    @abstractmethod
    def _next_start(self, slot: int, rng: np.random.Generator, episode: int, options: Mapping[str, np.ndarray]) -> Start:
        """The start of the slot's next episode.

        Args:
            slot: Which slot.
            rng: The slot's own stream.
            episode: How many episodes the slot has begun since it was seeded.
            options: `reset`'s options other than the mask, each (N,); empty for an automatic reset.
        """

    def _starts_to_come(self, task_id: int) -> Iterator[Start]:
        """Starts of the task that are likely to be asked for, those with equal keys once."""
        return iter(())

    def _check_options(self, options: Mapping[str, np.ndarray], slots: Sequence[int], episodes: np.ndarray) -> None:
        """Raise `ValueError` for options that cannot be met in these slots; arguments as for `_next_start`, `episodes` (N,)."""
        if options:
            raise ValueError(f"unknown reset option {next(iter(options))!r}: this env takes 'reset_mask'")

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # type: ignore[override]
        """Begin episodes in all slots, or in those of `options["reset_mask"]`, (N,) bool.

        Args:
            seed: Seeds every slot's stream of starts (slot i from (seed, i)), or one seed per slot.
            options: `reset_mask`, and what this env lets one choose a start by; each an array of N, or one value for all.

        Returns:
            Observation of all slots, and info: `task_id`, `init_state_id`, and `renderer`, what draws (see `Engine.renderer`).

        Raises:
            NotResetError: The env is closed, or a slot outside the mask was never reset.
            ValueError: Options or seeds that cannot be met; nothing has moved.
        """
        with self._busy:
            self._check_open()
            mask, chosen = read_reset_options(options, self.num_envs)
            slots = np.flatnonzero(mask).tolist()
            self._check_begun("reset with a reset_mask", np.flatnonzero(~mask).tolist())
            seeds = read_seeds(seed, self.num_envs)
            self._check_options(chosen, slots, np.where([slot_seed is None for slot_seed in seeds], self._episodes, 0))
            if isinstance(seed, int | np.integer):
                super().reset(seed=int(seed))
            self._seed_slots(slots, seeds)
            self._begin(slots, chosen)
            info = {**self._identity(), "renderer": np.array([self.renderer] * self.num_envs, dtype=object)}
            return self._observe(), with_masks(info, np.ones(self.num_envs, bool))

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:  # type: ignore[override]
        """Play one chunk in every slot whose episode is not over.

        Args:
            actions: (N, K, A) or a shorter chunk (N, k, A), or (N, A) without `chunk_size`; of the A numbers the last is the
                gripper's (-1 open, +1 close). Those before it, by `control`: translation and rotation (axis-angle) with
                "osc_delta", each in [-1, 1] and clipped to it; position in m and axis-angle in rad with "osc_absolute", as they
                are; seven joints, each in [-1, 1] and clipped to it, with "joint_position". Those of a slot that does not play
                are ignored, but must be finite.

        Returns:
            observation; reward (N,) float64, 1 where the goal was reached; terminated (N,) bool, the same; truncated (N,) bool,
            by the time limit or a fault; info: `num_steps` (actions played), `success` and, for LeRobot, the same as
            `is_success`, `task_id`, `init_state_id`. Where an episode ended it also has `episode_return`, `episode_length`
            (control steps), `episode_seconds` and, if the physics gave up, `fault`. Of a slot that is filmed (`render_every`)
            it has `frames`, (F, H, W, 3) uint8: the first camera as `render` gives it, after every so many control steps of
            the chunk and after its last, so that the last one of all shows the end of the episode. With
            `SAME_STEP`, the info of a step that ended an episode is in `final_info`, beside `final_obs`; for that slot the info
            itself speaks of the next episode's start, as in Gymnasium's own vector envs.

        Raises:
            NotResetError: Some slot was never reset, or the env is closed.
            ValueError: Wrong shape, or a number that is not finite; nothing has moved.
        """
        with self._busy:
            self._check_open()
            self._check_begun("step", range(self.num_envs))
            shape = self.action_space.shape
            return self._play(read_actions(actions, shape, chunk_size=self.chunk_size))  # type: ignore[arg-type]

    def _play(self, chunk: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """`step` with checked actions, (N, K, A)."""
        restarting = self._over.copy() if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        playing = ~self._over
        num_steps = np.zeros(self.num_envs, np.int32)
        success = np.zeros(self.num_envs, bool)
        rewards = np.zeros(self.num_envs)
        faults = np.full(self.num_envs, None, dtype=object)
        frames: Mapping[int, np.ndarray] = {}

        slots = np.flatnonzero(playing).tolist()
        if slots:
            limits = np.clip(self.max_episode_steps - self._elapsed[slots], 0, chunk.shape[1])
            try:
                result, rewards[slots] = self._advance(slots, chunk[slots], limits)
            except BaseException:
                self._forget(slots)
                raise
            num_steps[slots] = result.num_steps
            success[slots] = result.goal_reached
            faults[slots] = [fault or None for fault in result.faults]
            frames = result.frames
        faulted = np.array([fault is not None for fault in faults])
        self._elapsed += num_steps
        self._returns += rewards
        truncated = playing & ~success & (faulted | (self._elapsed >= self.max_episode_steps))
        ended = success | truncated
        self._over |= ended
        if restarting.any():
            self._begin(np.flatnonzero(restarting).tolist(), {})

        everyone = np.ones(self.num_envs, bool)
        played = {"num_steps": num_steps, "success": success, "is_success": success}
        endings = with_masks(self._statistics(), ended) | (with_masks({"fault": faults}, faulted) if faulted.any() else {})
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            final = with_masks({**played, **self._identity()}, ended) | frames_info(frames, ended) | endings
            endings = with_masks({"final_obs": self._observe_singly(ended), "final_info": final}, ended)
            self._begin(np.flatnonzero(ended).tolist(), {})
            info = with_masks(played, ~ended) | frames_info(frames, ~ended) | with_masks(self._identity(), everyone)
        else:
            info = with_masks({**played, **self._identity()}, everyone) | frames_info(frames, everyone)
        return self._observe(), rewards, success, truncated, info | (endings if ended.any() else {})

    def _advance(self, slots: Sequence[int], actions: Any, num_steps: np.ndarray) -> tuple[StepResult, np.ndarray]:
        """Play chunks as `Engine.step` does, and film; also returns the rewards (n,) float64."""
        result = self._engine.step(slots, actions, num_steps, film=self._filmed(slots))
        return result, result.goal_reached.astype(np.float64)

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """How the env was made; Gymnasium sets it."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = plain_spec(spec)

    @property
    def task_description(self) -> tuple[str, ...]:
        """N texts: what the robot is asked to do in each slot's present episode.

        Before the first reset "", unless the env has only one to ask.
        """
        before = next(iter(self.instructions.values())) if len(self.instructions) == 1 else ""
        return tuple(before if start is None else start.instruction for start in self._starts)

    @property
    def renderer(self) -> str:
        """What draws (see `Engine.renderer`); asking before the first reset opens the device."""
        return self._engine.renderer

    @property
    def render_span(self) -> tuple[float, float] | None:
        """When cameras drew last: `time.perf_counter()` at begin and end; None where the engine cannot tell.

        Where slots are drawn while others still move, a step is divided as its threads' time was, and drawing put at its end.
        """
        return getattr(self._engine, "render_span", None)

    def get_state(self) -> tuple[np.ndarray, ...]:
        """N arrays [time, qpos, qvel], as LIBERO stores them; their lengths differ between tasks."""
        with self._busy:
            self._check_open()
            self._check_begun("get_state", range(self.num_envs))
            return tuple(self._engine.get_state(slot) for slot in range(self.num_envs))

    def set_state(self, states: Sequence[np.ndarray]) -> dict[str, Any]:
        """Put every slot's physics into a state of its current task, as LIBERO's `set_init_state` does.

        Controllers, elapsed steps and whether an episode is over stay as they are.

        Args:
            states: N arrays [time, qpos, qvel].

        Returns:
            The observation there.
        """
        with self._busy:
            checked = read_states(states, [state.shape for state in self.get_state()])
            for slot, state in enumerate(checked):
                self._engine.set_state(slot, state)
            self._engine.draw(range(self.num_envs))
            return self._observe()

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """N pictures (H, W, 3) uint8 of the first camera, upright; None without `render_mode`."""
        if self.render_mode is None:
            return None
        if not self._cameras:
            raise ValueError("render needs a camera: make the env with cameras=('agentview',)")
        with self._busy:
            self._check_open()
            self._check_begun("render", range(self.num_envs))
            first = on_host(next(iter(self._engine.pictures().values())))
            # Observed pictures are upright already, and mirrored.
            return tuple(picture[:, ::-1].copy() for picture in first)

    def close(self, **kwargs: Any) -> None:
        """Wait for what is under way in other threads, then free everything. Calling it again does nothing.

        Args:
            kwargs: Not needed: what others of Gymnasium's vector envs take (`terminate`, `timeout`).
        """
        with self._busy:
            super().close()

    def close_extras(self) -> None:
        """Free physics, cameras and cached starts."""
        self._engine.close()
        self._settled.clear()
        self._starts = [None] * self.num_envs

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:  # at exit, this module's names are gone
        """Close the engine in a thread of its own: the garbage collector may run in a thread that closing waits for."""
        if hasattr(self, "_engine") and not self.closed and not is_finalizing():
            threading.Thread(target=self._engine.close, name="vla_envs-close").start()

    def _check_open(self) -> None:
        if self.closed:
            raise NotResetError("this env is closed: make a new one")

    def _changed_since_made(self) -> dict[str, Any]:
        self._check_open()
        if any(rng is not None for rng in self._slot_rngs):
            raise RuntimeError(
                "an env that was reset cannot be copied or pickled, as its copy would not be in the same episodes: "
                "make a new one, reset it, and give it get_state() by set_state()"
            )
        return {"_spec": self._spec, "max_episode_steps": self.max_episode_steps, "_render_every": self._render_every}

    def _check_begun(self, call: str, slots: Sequence[int]) -> None:
        for slot in slots:
            if self._starts[slot] is None:
                raise NotResetError(f"{call}: slot {slot} was never reset, or an error ended its episode: reset it first")

    def _check_ready(self, call: str) -> None:
        self._check_open()
        self._check_begun(call, range(self.num_envs))

    def _forget(self, slots: Sequence[int]) -> None:
        """These slots are in an unknown state until they are reset."""
        for slot in slots:
            self._starts[slot] = None

    def _seed_slots(self, slots: Sequence[int], seeds: Sequence[list[int] | None]) -> None:
        """Give slots new streams: those with a seed, and those that have none yet."""
        for slot in slots:
            if seeds[slot] is not None or self._slot_rngs[slot] is None:
                fresh = seeds[slot] or [int(self.np_random.integers(2**32)), slot]
                self._slot_rngs[slot] = np.random.default_rng(fresh)
                self._episodes[slot] = 0

    def _begin(self, slots: Sequence[int], options: Mapping[str, np.ndarray]) -> None:
        """Begin an episode in each slot; equal starts are settled and drawn once."""
        starts: dict[int, Start] = {}
        self._forget(slots)
        for slot in slots:
            rng = self._slot_rngs[slot]
            assert rng is not None
            starts[slot] = self._next_start(slot, rng, int(self._episodes[slot]), options)
        self._settled.begin(starts, self._starts_to_come)
        for slot, start in starts.items():
            self._starts[slot] = start
        self._episodes[slots] += 1
        self._over[slots] = False
        self._elapsed[slots] = 0
        self._returns[slots] = 0.0
        self._began_at[slots] = time.perf_counter()

    def _observe(self) -> dict[str, Any]:
        """The observation of all slots, in memory of its own."""
        return {
            **{image_key(name): self._give(pictures) for name, pictures in self._engine.pictures().items()},
            **{depth_key(name): self._give(depths) for name, depths in self._engine.depths().items()},
            **{segmentation_key(name): self._give(bodies) for name, bodies in self._engine.segmentations().items()},
            "state": self._give(as_float32(self._engine.proprioception(range(self.num_envs)))),
            **self._robot_state(),
            "instruction": tuple("" if start is None else start.instruction for start in self._starts),
        }

    def _robot_state(self) -> dict[str, Any]:
        """By key of `state_keys`: (N, ...) float32."""
        if not self.state_keys:
            return {}
        rows = self._engine.robot_state(range(self.num_envs))
        return {key: self._give(ROBOT_STATE[key].of(rows)) for key in self.state_keys}

    def _observe_singly(self, mask: np.ndarray) -> np.ndarray:
        """(N,) objects: the observations of the slots in `mask`, each for itself; None elsewhere."""
        together = self._observe()
        singles = np.full(self.num_envs, None, dtype=object)
        for slot in np.flatnonzero(mask):
            singles[slot] = {key: value[slot] for key, value in together.items()}
        return singles

    def _identity(self) -> dict[str, np.ndarray]:
        """Which episode each slot plays."""
        return {
            "task_id": np.array([-1 if start is None else start.task_id for start in self._starts]),
            "init_state_id": np.array([-1 if start is None else start.init_state_id for start in self._starts]),
        }

    def _statistics(self) -> dict[str, np.ndarray]:
        """Each slot's episode so far; not under "episode", the key of Gymnasium's RecordEpisodeStatistics."""
        seconds = time.perf_counter() - self._began_at
        return {"episode_return": self._returns, "episode_length": self._elapsed, "episode_seconds": seconds}
