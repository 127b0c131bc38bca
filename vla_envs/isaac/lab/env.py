"""A task of Isaac Lab as a Gymnasium vector env with pictures, a state and an instruction, and with chunked actions.

    Isaac Lab                                        here
    tensors of all environments                      arrays of all slots, or tensors that stay where they are
    resets an environment inside the step that       shows the final observation, and resets a slot when its turn comes;
    ends its episode                                 until then Isaac Lab simulates on, and nobody looks
    one generator for all environments               a stream of starts per slot: the same seed gives the same start

Knows no task: what LIBERO's tasks are is in the environment that it is given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from isaaclab.envs import ManagerBasedRLEnv

from vla_envs.errors import NotResetError
from vla_envs.isaac.lab.observed import Observed
from vla_envs.libero.initial_states import START_NUMBERS
from vla_envs.vector.arguments import check_shape, read_reset_options, read_seeds
from vla_envs.vector.arrays import giver, on_host
from vla_envs.vector.conversion import convert_texts_to_themselves
from vla_envs.vector.infos import with_masks
from vla_envs.vector.options import RENDER_MODES
from vla_envs.vector.slot_attributes import SlotAttributes
from vla_envs.vector.spec import plain_spec

_GAVE_UP = "the simulation diverged, or contacts and constraints beyond its buffers were dropped"


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What a vector env tells of its task, and Isaac Lab does not know."""

    instruction: str
    images: Mapping[str, str]
    """Key of an observation -> "group/term" of Isaac Lab's."""
    state: str | None
    """The same of the state; None without one."""
    success: str | None = None
    """Termination term that says that the goal was reached; None if nothing says so."""
    gave_up: str | None = None
    """Termination term that says that physics gave up."""
    suite: str | None = None
    task_id: int = 0
    mirrored_images: bool = False
    robot_type: str | None = None
    control_mode: str | None = None
    gripper_convention: str | None = None


class IsaacLabEnv(SlotAttributes, gym.vector.VectorEnv):
    """N slots of one Isaac Lab task.

    Shape letters: N slots, K actions of a chunk, D numbers of an action.

    Args:
        env: Made with `compute_final_obs`; this env closes it.
        facts: About the task.
        chunk_size: K: `step` takes (N, K, D); None: (N, D).
        autoreset_mode: As in Gymnasium.
        render_mode: "rgb_array" or None.
        arrays: "numpy", or "torch": pictures and `state` are tensors on Isaac Lab's device, and `step` takes them.

    Raises:
        ValueError: The env has no such observation or termination term.
    """

    _spec: EnvSpec | None = None
    backend = "isaaclab"
    num_init_states: Mapping[int, int] = {}
    _settable = ()

    def __init__(
        self,
        env: ManagerBasedRLEnv,
        *,
        facts: TaskFacts,
        chunk_size: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        arrays: str = "numpy",
    ) -> None:
        convert_texts_to_themselves()
        self._give = giver(arrays)
        self._env, self._facts = env, facts
        self._busy = threading.RLock()
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.num_envs, self.chunk_size, self.render_mode = env.num_envs, chunk_size, render_mode
        self.suite, self.task_ids = facts.suite, (facts.task_id,)
        self.instructions = {facts.task_id: facts.instruction}
        self.mirrored_images, self.robot_type = facts.mirrored_images, facts.robot_type
        self.control_mode, self.gripper_convention = facts.control_mode, facts.gripper_convention
        self.max_episode_steps = int(env.max_episode_length)
        self.metadata = {
            "reports_success": facts.success is not None,
            "autoreset_mode": self.autoreset_mode,
            "render_modes": list(RENDER_MODES),
            "render_fps": 1.0 / env.step_dt / (chunk_size or 1),
        }
        for term in (facts.success, facts.gave_up):
            known = env.termination_manager.active_terms
            if term is not None and term not in known:
                raise ValueError(f"the env has no termination {term!r}: it has {', '.join(known)}")
        example, _ = env.reset()
        self._observed = Observed(example, images=facts.images, state=facts.state, instruction=facts.instruction)
        self.single_observation_space = self._observed.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        single = env.single_action_space
        assert isinstance(single, gym.spaces.Box)
        shape = single.shape if chunk_size is None else (chunk_size, *single.shape)
        low, high = (np.broadcast_to(bound, shape).astype(np.float32) for bound in (single.low, single.high))
        self.single_action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._may_skip = not any(
            term.history_length for terms in env.observation_manager._group_obs_term_cfgs.values() for term in terms
        )

        everyone = torch.ones(self.num_envs, dtype=torch.bool)
        self._shown = {key: rows.clone() for key, rows in self._observed.read(example, everyone).items()}
        """What each slot shows, on Isaac Lab's device."""
        self._begun = np.zeros(self.num_envs, bool)
        self._slot_rngs: list[np.random.Generator | None] = [None] * self.num_envs
        self._over = np.zeros(self.num_envs, bool)
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._returns = np.zeros(self.num_envs)
        self._began_at = np.zeros(self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # type: ignore[override]
        """Begin episodes in all slots, or in those of `options["reset_mask"]`, (N,) bool.

        Args:
            seed: Seeds every slot's stream of starts (slot i from (seed, i)), or one seed per slot.
            options: `reset_mask`.

        Returns:
            Observation of all slots, and info: `task_id`, `init_state_id` (-1), `renderer`.

        Raises:
            NotResetError: The env is closed, or a slot outside the mask was never reset.
            ValueError: Options or seeds that cannot be met; nothing has moved.
        """
        with self._busy:
            self._check_open()
            mask, others = read_reset_options(options, self.num_envs)
            if others:
                raise ValueError(f"unknown reset option {next(iter(others))!r}: this env takes 'reset_mask'")
            self._check_begun("reset with a reset_mask", ~mask)
            seeds = read_seeds(seed, self.num_envs)
            if isinstance(seed, int | np.integer):
                super().reset(seed=int(seed))
            for slot in np.flatnonzero(mask).tolist():
                if seeds[slot] is not None or self._slot_rngs[slot] is None:
                    self._slot_rngs[slot] = np.random.default_rng(seeds[slot] or [int(self.np_random.integers(2**32)), slot])
            self._begin(mask)
            info = {**self._identity(), "renderer": np.array([self.renderer] * self.num_envs, dtype=object)}
            return self._observe(), with_masks(info, np.ones(self.num_envs, bool))

    def step(self, actions: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:  # type: ignore[override]
        """Play one chunk in every slot whose episode is not over.

        Args:
            actions: (N, K, D) or a shorter chunk, or (N, D) without `chunk_size`, an array or a tensor. Those of a slot that
                does not play are ignored, but must be finite.

        Returns:
            observation; reward (N,) float64, Isaac Lab's, summed over the chunk; terminated and truncated (N,) bool; info as of
            `ChunkedVectorEnv.step`.

        Raises:
            NotResetError: Some slot was never reset, or the env is closed.
            ValueError: Wrong shape, or a number that is not finite; nothing has moved.
        """
        with self._busy:
            self._check_open()
            self._check_begun("step", np.ones(self.num_envs, bool))
            chunk = torch.as_tensor(actions, dtype=torch.float32, device=self._env.device)
            expected = self.action_space.shape
            assert expected is not None
            check_shape("actions", tuple(chunk.shape), expected, chunk_size=self.chunk_size)
            if not bool(chunk.isfinite().all()):
                raise ValueError(f"actions must be finite, got {float(chunk[~chunk.isfinite()][0])}")
            return self._step(chunk.detach().reshape(self.num_envs, -1, expected[-1]).clone())

    def _step(self, chunk: torch.Tensor) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        restarting = self._over.copy() if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        played = self._play(chunk)
        ended = played.terminated | played.truncated
        self._elapsed += played.num_steps
        self._returns += played.reward
        self._over |= ended
        if restarting.any():
            self._begin(restarting)

        everyone = np.ones(self.num_envs, bool)
        told = {"num_steps": played.num_steps, "success": played.success, "is_success": played.success}
        seconds = time.perf_counter() - self._began_at
        statistics = {"episode_return": self._returns, "episode_length": self._elapsed, "episode_seconds": seconds}
        endings = with_masks(statistics, ended)
        if played.gave_up.any():
            endings |= with_masks({"fault": np.full(self.num_envs, _GAVE_UP, dtype=object)}, played.gave_up)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            final = with_masks({**told, **self._identity()}, ended) | endings
            endings = with_masks({"final_obs": self._observe_singly(ended), "final_info": final}, ended)
            self._begin(ended)
            info = with_masks(told, ~ended) | with_masks(self._identity(), everyone)
        else:
            info = with_masks({**told, **self._identity()}, everyone)
        info |= endings if ended.any() else {}
        return self._observe(), played.reward, played.terminated, played.truncated, info

    def _play(self, actions: torch.Tensor) -> _Played:
        """Play a chunk (N, K, D) in the slots that are not over, each until its episode's end."""
        played, playing = _Played(self.num_envs), ~self._over
        observation: Mapping[str, Any] = {}
        try:
            for index in range(actions.shape[1]):
                if not playing.any():
                    break
                actions[:, index][torch.tensor(~playing, device=actions.device)] = 0.0
                with self._drawing(index == actions.shape[1] - 1):
                    observation, reward, terminated, truncated, extras = self._env.step(actions[:, index])
                played.num_steps += playing
                played.reward[playing] += reward.cpu().numpy()[playing]
                for name, flags in (("terminated", terminated), ("truncated", truncated)):
                    getattr(played, name)[playing] = flags.cpu().numpy()[playing]
                for name, term in (("success", self._facts.success), ("gave_up", self._facts.gave_up)):
                    if term is not None:
                        flags = self._env.termination_manager.get_term(term)
                        getattr(played, name)[playing] = flags.cpu().numpy()[playing]
                played.truncated &= ~played.terminated
                ended = playing & (played.terminated | played.truncated)
                if ended.any():
                    self._show(extras["final_obs"], ended)
                playing &= ~ended
            if playing.any():
                self._show(observation, playing)
        except BaseException:
            self._begun[~self._over] = False
            raise
        return played

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """How the env was made; Gymnasium sets it."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = plain_spec(spec)

    @property
    def task_description(self) -> tuple[str, ...]:
        """N times the instruction."""
        return (self._facts.instruction,) * self.num_envs

    @property
    def renderer(self) -> str:
        """What draws."""
        return f"Isaac Lab {torch.cuda.get_device_name() if 'cuda' in str(self._env.device) else 'on the CPU'}"

    @property
    def isaaclab(self) -> ManagerBasedRLEnv:
        """Isaac Lab's own env."""
        return self._env

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """N pictures (H, W, 3) uint8, upright and not mirrored; None without `render_mode`."""
        if self.render_mode is None:
            return None
        if not self._facts.images:
            raise ValueError("render needs a camera: make the env with cameras=('agentview',)")
        with self._busy:
            self._check_open()
            self._check_begun("render", np.ones(self.num_envs, bool))
            pictures = on_host(self._shown[next(iter(self._facts.images))])
            return tuple((picture[:, ::-1] if self.mirrored_images else picture).copy() for picture in pictures)

    def close(self, **kwargs: Any) -> None:
        """Free everything; then this process may have another simulation. Calling it again does nothing."""
        with self._busy:
            super().close()

    def close_extras(self) -> None:
        """Close Isaac Lab's env."""
        self._begun[:] = False
        self._env.close()

    def _begin(self, mask: np.ndarray) -> None:
        """Begin an episode in each slot of the mask, each from a seed of its slot's stream."""
        slots = np.flatnonzero(mask).tolist()
        self._begun[mask] = False
        seeds: dict[int, int] = {}
        for slot in slots:
            rng = self._slot_rngs[slot]
            assert rng is not None
            seeds[slot] = int(rng.integers(START_NUMBERS))
        numbered = hasattr(self._env, "episode_seeds")
        observation = self._begin_numbered(seeds) if numbered else self._begin_seeded(seeds)
        self._show(observation, mask)
        self._begun[mask] = True
        self._over[mask] = False
        self._elapsed[mask] = 0
        self._returns[mask] = 0.0
        self._began_at[mask] = time.perf_counter()

    def _begin_numbered(self, seeds: Mapping[int, int]) -> Mapping[str, Any]:
        """All at once: the env has its starts by number."""
        slots = torch.tensor(list(seeds), dtype=torch.int32, device=self._env.device)
        numbers = torch.zeros(self.num_envs, dtype=torch.int64, device=self._env.device)
        numbers[slots.long()] = torch.tensor(list(seeds.values()), device=self._env.device)
        self._env.episode_seeds = numbers  # type: ignore[attr-defined]
        try:
            return self._env.reset(env_ids=slots)[0]
        finally:
            self._env.episode_seeds = None  # type: ignore[attr-defined]

    def _begin_seeded(self, seeds: Mapping[int, int]) -> Mapping[str, Any]:
        """One by one, as Isaac Lab's generator is one for all; slots of equal seeds get copies of the first one's state."""
        equal: dict[int, list[int]] = {}
        for slot, seed in seeds.items():
            equal.setdefault(seed, []).append(slot)
        observation: Mapping[str, Any] = {}
        for seed, (first, *others) in equal.items():
            observation, _ = self._env.reset(env_ids=self._ids([first]), seed=seed)
            if others:
                state = _rows(self._env.scene.get_state(is_relative=True), first, len(others))
                observation, _ = self._env.reset_to(state, env_ids=self._ids(others), is_relative=True)
        return observation

    def _ids(self, slots: Sequence[int]) -> torch.Tensor:
        return torch.tensor(slots, dtype=torch.int32, device=self._env.device)

    @contextmanager
    def _drawing(self, draws: bool) -> Iterator[None]:
        """Unless `draws`, Isaac Lab does not look at the end of a step: a policy looks once per chunk."""
        manager = self._env.observation_manager
        if draws or not self._may_skip:
            yield
            return
        compute = manager.compute

        def only_final(update_history: bool = False) -> Any:  # the observation at an episode's end keeps no history
            return self._env.obs_buf if update_history else compute()

        manager.compute = only_final
        try:
            yield
        finally:
            del manager.compute

    def _show(self, observation: Mapping[str, Any], mask: np.ndarray) -> None:
        slots = torch.tensor(mask)
        for key, rows in self._observed.read(observation, slots).items():
            self._shown[key][slots.to(rows.device)] = rows

    def _observe(self) -> dict[str, Any]:
        arrays = {key: self._give(rows.clone()) for key, rows in self._shown.items()}
        return {**arrays, "instruction": (self._facts.instruction,) * self.num_envs}

    def _observe_singly(self, mask: np.ndarray) -> np.ndarray:
        together, singles = self._observe(), np.full(self.num_envs, None, dtype=object)
        for slot in np.flatnonzero(mask):
            singles[slot] = {key: value[slot] for key, value in together.items()}
        return singles

    def _identity(self) -> dict[str, np.ndarray]:
        return {"task_id": np.full(self.num_envs, self._facts.task_id), "init_state_id": np.full(self.num_envs, -1)}

    def _check_open(self) -> None:
        if self.closed:
            raise NotResetError("this env is closed: make a new one")

    def _check_begun(self, call: str, mask: np.ndarray) -> None:
        for slot in np.flatnonzero(mask & ~self._begun):
            raise NotResetError(f"{call}: slot {slot} was never reset, or an error ended its episode: reset it first")


class _Played:
    """What happened to N slots in a chunk."""

    def __init__(self, num_envs: int) -> None:
        self.num_steps = np.zeros(num_envs, np.int32)
        self.reward = np.zeros(num_envs)
        self.terminated, self.truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self.success, self.gave_up = np.zeros(num_envs, bool), np.zeros(num_envs, bool)


def _rows(state: Any, row: int, times: int) -> Any:
    """A row of each tensor in a tree of dictionaries, repeated."""
    if isinstance(state, Mapping):
        return {key: _rows(value, row, times) for key, value in state.items()}
    return state[row : row + 1].repeat(times, *[1] * (state.ndim - 1))
