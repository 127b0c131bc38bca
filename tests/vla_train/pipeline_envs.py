"""Small envs, a policy and a plain loop for the tests of the pipeline.

`pipeline_envs:Drift-v0`: a point drifts by the action plus noise drawn at reset; the episode ends when it leaves [-1, 1], with
reward 1 on the right side. The image shows the seed, the step and the position, so a test sees who was shown what.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from vla_train.config import EnvConfig
from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.types import EpisodeSpec, Observation, PolicyOutput

HEIGHT, WIDTH = 4, 5
INSTRUCTION = "drift to the right"


class DriftEnv(gym.Env[dict[str, Any], np.ndarray]):
    """See the module's docstring.

    Args:
        fault: What goes wrong at step `fault_step` of an episode (0: its reset): "raise", "die", "hang", "nan" or "shape".
        fault_seed: The fault happens only in episodes with this reset seed; None means in any.
        spared_resets: Resets of this env before the fault may happen.
        marker: The fault happens once in each of this folder's first `fault_times` visits; None never stops it.
        seconds_per_step: Time that a step takes without holding the GIL.
        jitter_s: Longest additional time that a step takes, drawn anew each time, not from the episode's seed.
    """

    observation_space = gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
            "position": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32),
            "instruction": gym.spaces.Text(64, charset="".join(sorted(set(INSTRUCTION)))),
        }
    )
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(
        self,
        *,
        fault: str = "",
        fault_step: int = 3,
        fault_times: int = 1,
        fault_seed: int | None = None,
        spared_resets: int = 0,
        marker: str | None = None,
        seconds_per_step: float = 0.0,
        jitter_s: float = 0.0,
    ) -> None:
        self._fault, self._fault_step, self._fault_times, self._marker = fault, fault_step, fault_times, marker
        self._seconds_per_step, self._jitter_s = seconds_per_step, jitter_s
        self._spared_resets = spared_resets
        self._fault_seed = fault_seed

    def _faulty_now(self) -> bool:
        if not self._fault or self._steps != self._fault_step or self._spared_resets >= 0:
            return False
        if self._fault_seed not in (None, self._seed):
            return False
        if self._marker is None:
            return True
        for visit in range(self._fault_times):
            try:
                (Path(self._marker) / f"fault{visit}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False

    def _observe(self) -> dict[str, Any]:
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[..., 0], image[..., 1] = self._seed % 256, self._steps % 256
        image[..., 2] = np.uint8(np.clip((self._position + 1) * 100, 0, 255))
        return {"image": image, "position": np.array([self._position], np.float32), "instruction": INSTRUCTION}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._spared_resets -= 1
        self._seed, self._steps = seed if seed is not None else 255, 0
        self._position = float(self.np_random.uniform(-0.3, 0.3))
        observation = self._observe()
        self._fail(observation)
        return observation, {}

    def _fail(self, observation: dict[str, Any]) -> float:
        """Do the damage if it is due; returns what is to be added to the reward."""
        if self._faulty_now():
            match self._fault:
                case "raise":
                    raise ZeroDivisionError("the simulator broke")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
                case "nan":
                    return float("nan")
                case "shape":
                    observation["image"] = observation["image"][:-1]
        return 0.0

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self._seconds_per_step or self._jitter_s:
            time.sleep(self._seconds_per_step + random.uniform(0, self._jitter_s))
        self._steps += 1
        self._position += 0.2 * float(action[0]) + 0.05 * float(action[1])
        ended = abs(self._position) > 1
        observation = self._observe()
        reward = float(ended and self._position > 0) + self._fail(observation)
        return observation, reward, ended, False, {}


class ChunkedDriftEnv(VectorEnv):
    """The same as a vector env of its own: chunked steps, DISABLED autoreset, `reset_mask`, tasks with stored initial states.

    Finished slots are frozen. `init_state_id` s of task t starts as seed 10 * t + s does.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int, *, chunk_size: int, max_episode_steps: int = 20) -> None:
        self.num_envs = num_envs
        self.task_ids = (0, 1)
        self.num_init_states = {0: 4, 1: 4}
        self.instructions = {0: INSTRUCTION, 1: INSTRUCTION}
        self.suite = "drift"
        self.max_episode_steps = max_episode_steps
        self._envs = [gym.wrappers.TimeLimit(DriftEnv(), max_episode_steps) for _ in range(num_envs)]
        self.single_observation_space = DriftEnv.observation_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.single_action_space = DriftEnv.action_space
        self.action_space = gym.spaces.Box(-1.0, 1.0, (num_envs, chunk_size, 2), np.float32)
        self._observations: list[dict[str, Any] | None] = [None] * num_envs
        self._frozen = np.ones(num_envs, bool)
        self.render_span: tuple[float, float] | None = None

    def _batch(self) -> dict[str, Any]:
        assert None not in self._observations, "step or reset before every slot was reset"
        return {
            "image": np.stack([observation["image"] for observation in self._observations]),
            "position": np.stack([observation["position"] for observation in self._observations]),
            "instruction": tuple(observation["instruction"] for observation in self._observations),
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        assert options is not None
        for slot in np.flatnonzero(options["reset_mask"]):
            start = 10 * int(options["task_id"][slot]) + int(options["init_state_id"][slot])
            self._observations[slot], _ = self._envs[slot].reset(seed=start)
            self._frozen[slot] = False
        return self._batch(), {}

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        num_steps = np.zeros(self.num_envs, np.int64)
        for slot, env in enumerate(self._envs):
            for action in actions[slot]:
                if self._frozen[slot]:
                    break
                self._observations[slot], reward, terminated[slot], truncated[slot], _ = env.step(action)
                rewards[slot] += reward
                num_steps[slot] += 1
                self._frozen[slot] = terminated[slot] or truncated[slot]
        drawing = time.perf_counter()
        observation = self._batch()
        self.render_span = drawing, time.perf_counter()
        return observation, rewards, terminated, truncated, {"num_steps": num_steps}


def make_next_step(num_envs: int, **kwargs: Any) -> VectorEnv:
    return _make_sync(num_envs, AutoresetMode.NEXT_STEP, **kwargs)


def make_same_step(num_envs: int, **kwargs: Any) -> VectorEnv:
    return _make_sync(num_envs, AutoresetMode.SAME_STEP, **kwargs)


def _make_sync(num_envs: int, mode: AutoresetMode, *, max_episode_steps: int, jitter_s: float = 0.0) -> VectorEnv:
    def make() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(DriftEnv(jitter_s=jitter_s), max_episode_steps)

    env = SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
    env.max_episode_steps = max_episode_steps  # type: ignore[attr-defined]
    return env


gym.register("Drift-v0", entry_point=DriftEnv, max_episode_steps=20, disable_env_checker=True)
gym.register("ChunkedDrift-v0", entry_point=DriftEnv, vector_entry_point=ChunkedDriftEnv, max_episode_steps=20)
gym.register("NextStepDrift-v0", entry_point=DriftEnv, vector_entry_point=make_next_step, max_episode_steps=20)
gym.register("SameStepDrift-v0", entry_point=DriftEnv, vector_entry_point=make_same_step, max_episode_steps=20)


class DrawingPolicy:
    """Turns the numbers it is given into actions; looks at the image, so that a wrong image changes the episode."""

    chunk_size = 3
    action_dim = 2
    observation_keys = ("image", "instruction")

    @property
    def num_uniforms(self) -> int:
        return self.chunk_size * self.action_dim

    def __init__(self, *, seconds_per_call: float = 0.0) -> None:
        self.version = 0
        self.batch_sizes: list[int] = []
        self._seconds_per_call = seconds_per_call

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        self.batch_sizes.append(len(observation))
        if self._seconds_per_call:
            time.sleep(self._seconds_per_call)
        if uniforms is None:
            uniforms = np.full((len(observation), self.chunk_size * self.action_dim), 0.9, np.float32)
        mean = observation["image"].reshape(len(observation), -1).mean(axis=1, dtype=np.float64, keepdims=True)
        numbers = (uniforms + mean / 255).astype(np.float32) % 1.0
        return PolicyOutput(
            actions=(2 * numbers - 1).reshape(-1, self.chunk_size, self.action_dim),
            decision={"token_ids": (256 * numbers).astype(np.int32), "logprobs": np.log(0.01 + numbers)},
            policy_version=self.version,
        )


def drift_config(**changes: Any) -> EnvConfig:
    return EnvConfig(
        **{"id": "pipeline_envs:Drift-v0", "success": "terminated", "num_workers": 2, "envs_per_worker": 3, **changes}
    )


def make_spec(group_id: int, sample_id: int = 0, **changes: Any) -> EpisodeSpec:
    return EpisodeSpec(
        **{
            "group_id": group_id,
            "sample_id": sample_id,
            "task_id": 0,
            "init_state_id": -1,
            "seed": 7 * group_id,
            **changes,
        }
    )


def play_alone(spec: EpisodeSpec, *, seed: int | None, start: int | None = None, time_limit: int = 20) -> dict[str, Any]:
    """The slow, obvious way to play one episode with `DrawingPolicy`; `seed` None is greedy."""
    policy, env = DrawingPolicy(), gym.wrappers.TimeLimit(DriftEnv(), time_limit)
    observation, _ = env.reset(seed=spec.seed if start is None else start)
    images, tokens, logprobs, num_steps, rewards = [], [], [], [], []
    ended = False
    while not ended:
        uniforms = None if seed is None else sampling_numbers(seed, spec, len(images), 6)[None]
        output = policy.act(
            Observation(arrays={"image": observation["image"][None]}, instructions=(INSTRUCTION,)),
            uniforms=uniforms,
            temperature=1.0,
        )
        images.append(observation["image"])
        tokens.append(output.decision["token_ids"][0])
        logprobs.append(output.decision["logprobs"][0])
        num_steps.append(0)
        rewards.append(0.0)
        for action in output.actions[0]:
            observation, reward, terminated, truncated, _ = env.step(action)
            num_steps[-1] += 1
            rewards[-1] += reward
            ended = terminated or truncated
            if ended:
                break
    return {
        "images": np.stack(images),
        "token_ids": np.stack(tokens),
        "logprobs": np.stack(logprobs),
        "num_steps": np.array(num_steps),
        "rewards": np.array(rewards),
        "success": bool(terminated and reward > 0),
        "truncated": bool(truncated and not terminated),
    }


def assert_played_as_alone(trajectory: Any, *, seed: int | None, start: int | None = None, time_limit: int = 20) -> None:
    expected = play_alone(trajectory.spec, seed=seed, start=start, time_limit=time_limit)
    assert trajectory.instruction == INSTRUCTION
    played = fields_of(trajectory)
    for name, value in expected.items():
        np.testing.assert_array_equal(played[name], value, err_msg=f"{name} of {trajectory.spec}")


def fields_of(trajectory: Any) -> dict[str, Any]:
    """What a trajectory says, under the names of `play_alone`."""
    return {
        "images": trajectory.observations["image"],
        **trajectory.decisions,
        **{name: getattr(trajectory, name) for name in ("instruction", "num_steps", "rewards", "success", "truncated")},
    }
