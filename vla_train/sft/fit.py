"""Whether demonstrations, env and policy belong together: whatever would cost success without an error is refused here."""

from pathlib import Path
from typing import Protocol

from vla_train.config import PolicyConfig
from vla_train.policy.base import SupervisedPolicy, TrainablePolicy
from vla_train.types import INSTRUCTION, EnvDescription


class DatasetDescription(Protocol):
    """What a dataset says of itself; see `DemonstrationDataset`."""

    fps: int
    robot_type: str | None
    action_dim: int
    state_dim: int | None
    image_keys: tuple[str, ...]
    suite: str | None


def require_demonstrations_of(folder: Path, dataset: DatasetDescription, env: EnvDescription) -> None:
    """Refuse demonstrations that were not made in such an env.

    Raises:
        ValueError: Another robot, size of actions, rate or suite; the message says which, and what the env has.
    """
    if dataset.action_dim != env.action_dim:
        raise ValueError(f"{folder} holds actions of {dataset.action_dim} numbers, the env takes {env.action_dim}")
    if env.actions_per_s is not None and dataset.fps != env.actions_per_s:
        raise ValueError(f"{folder} holds {dataset.fps} actions per second, the env plays {env.actions_per_s:g}")
    if None not in (dataset.robot_type, env.robot_type) and dataset.robot_type != env.robot_type:
        raise ValueError(f"{folder} holds demonstrations of the robot {dataset.robot_type}, the env has {env.robot_type}")
    if None not in (dataset.suite, env.suite) and dataset.suite != env.suite:
        raise ValueError(
            f"{folder} holds demonstrations of {dataset.suite}, the env plays {env.suite}: set env.kwargs suite=..."
        )


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


def require_readable(folder: Path, dataset: DatasetDescription, policy: TrainablePolicy) -> None:
    """Refuse a policy that reads what the demonstrations do not hold.

    Raises:
        ValueError: It does; the message names it.
    """
    held = {INSTRUCTION, *dataset.image_keys, *(() if dataset.state_dim is None else ("state",))}
    for key in policy.observation_keys:
        if key not in held:
            raise ValueError(f"the policy reads {key!r}, {folder} holds {', '.join(sorted(held - {INSTRUCTION}))}")
