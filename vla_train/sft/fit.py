"""Whether demonstrations, env and policy belong together: whatever would cost success without an error is refused here."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vla_train.config import EnvConfig, PolicyConfig
from vla_train.demonstrations.description import DemonstratedEpisode
from vla_train.policy.base import SupervisedPolicy, TrainablePolicy
from vla_train.types import INSTRUCTION, EnvDescription

_NOT_DRAWN = ("suite", "task_id", "task_ids", "max_episode_steps", "cameras", "num_threads", "cache_dir")
"""Arguments of LIBERO's envs that change no picture, or are compared above."""


class DatasetDescription(Protocol):
    """What a dataset says of itself; see `DemonstrationDataset`."""

    fps: float
    robot_type: str | None
    action_dim: int
    state_dim: int | None
    image_keys: tuple[str, ...]
    suite: str | None
    env_id: str | None
    env_kwargs: dict[str, str]
    episodes: tuple[DemonstratedEpisode, ...]


def require_own_folder(data: Path, output: Path) -> None:
    """Refuse to write a run into a dataset, or around it.

    Raises:
        ValueError: One of the two folders is, or holds, the other.
    """
    read, written = data.resolve(), output.resolve()
    if read.is_relative_to(written) or written.is_relative_to(read):
        raise ValueError(f"output {output} and data {data} must be folders apart: choose another output")


def env_of(dataset: DatasetDescription, config: EnvConfig) -> EnvConfig:
    """The env with the arguments that `collect` gave it, where the user gives none."""
    return replace(config, kwargs=dataset.env_kwargs) if dataset.env_id == config.id and not config.kwargs else config


def require_demonstrations_of(folder: Path, dataset: DatasetDescription, env: EnvDescription, *, fps: float | None) -> None:
    """Refuse demonstrations that were not made in such an env.

    Args:
        folder: Named in messages.
        dataset: What they say of themselves.
        env: What is to be played.
        fps: Their actions per second where the user says it; None takes their word.

    Raises:
        ValueError: Another robot, size of actions, rate or suite, or tasks that the env does not play; the message says which,
            and what the env has.
    """
    fps = dataset.fps if fps is None else fps
    if dataset.action_dim != env.action_dim:
        raise ValueError(f"{folder} holds actions of {dataset.action_dim} numbers, the env takes {env.action_dim}")
    if env.actions_per_s is not None and abs(fps - env.actions_per_s) > 0.5:  # datasets round it
        raise ValueError(
            f"{folder} holds {fps:g} actions per second, the env plays {env.actions_per_s:g} (where the data say it wrongly, "
            "as published LIBERO sets do, set fps)"
        )
    if None not in (dataset.robot_type, env.robot_type) and dataset.robot_type != env.robot_type:
        raise ValueError(f"{folder} holds demonstrations of the robot {dataset.robot_type}, the env has {env.robot_type}")
    if None not in (dataset.suite, env.suite) and dataset.suite != env.suite:
        raise ValueError(
            f"{folder} holds demonstrations of {dataset.suite}, the env plays {env.suite}: set env.kwargs suite={dataset.suite}"
        )
    tasks = {episode.task_id for episode in dataset.episodes if episode.task_id is not None}
    if not_played := sorted(tasks - set(env.task_ids)):
        raise ValueError(
            f"{folder} holds demonstrations of tasks that the env does not play ({', '.join(map(str, not_played))}), so nobody "
            "could say which of their initial states are held out: add them to env.kwargs task_ids"
        )


def drawing_warning(folder: Path, dataset: DatasetDescription, config: EnvConfig) -> str | None:
    """What to know where `collect` drew the pictures with other arguments of the env; None where it did not, or nobody knows.

    A policy may well be taught so, but success then tells how far it carries over.
    """
    held, asked = (
        {name: value for name, value in kwargs.items() if name not in _NOT_DRAWN}
        for kwargs in (dataset.env_kwargs or config.kwargs, config.kwargs)
    )
    different = [
        f"{name} {held.get(name, 'unset')} in the data, {asked.get(name, 'unset')} in env.kwargs"
        for name in sorted(held.keys() | asked.keys())
        if held.get(name) != asked.get(name)
    ]
    if not different:
        return None
    return f"evaluations may look different from {folder}: {'; '.join(different)}"


def require_supervised(policy: TrainablePolicy, config: PolicyConfig) -> SupervisedPolicy:
    """The policy as one that demonstrations can teach.

    Raises:
        ValueError: It does not say how it would have decided the actions of others.
    """
    missing = [name for name in ("targets", "use_statistics", "crop_area") if not hasattr(policy, name)]
    if missing:
        raise ValueError(
            f"policy.factory {config.factory} builds a policy without {', '.join(missing)}: sft needs a SupervisedPolicy "
            "(see vla_train/policy/base.py)"
        )
    return policy  # type: ignore[return-value]


def require_readable(folder: Path, dataset: DatasetDescription, policy: TrainablePolicy, env: EnvDescription) -> None:
    """Refuse a policy that reads what the demonstrations do not hold, or not as the env observes it.

    Raises:
        ValueError: It does; the message names it.
    """
    held = {INSTRUCTION, *dataset.image_keys, *(() if dataset.state_dim is None else ("state",))}
    for key in policy.observation_keys:
        if key not in held:
            raise ValueError(f"the policy reads {key!r}, {folder} holds {', '.join(sorted(held - {INSTRUCTION}))}")
    state = env.observations.get("state")
    if "state" in policy.observation_keys and state is not None and state.shape != (dataset.state_dim,):
        raise ValueError(f"{folder} holds states of {dataset.state_dim} numbers, the env observes {state.shape}")
