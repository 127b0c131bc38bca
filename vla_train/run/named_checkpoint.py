"""The policy that a name stands for: a run's folder, one of its checkpoints, or any checkpoint of a policy.

RUN                                      the policy of its newest complete checkpoint
RUN/checkpoints/step_000010[/policy]     the policy of that checkpoint, whose files must be as they were written
any other name                           itself: a folder, `demo` or a hub id, which whoever opens it checks
"""

from pathlib import Path

from vla_train.config import DEMO_CHECKPOINT
from vla_train.trainer.checkpoint_folder import latest_checkpoint, list_checkpoints
from vla_train.trainer.manifest import CheckpointError, verify_checkpoint

_POLICY = "policy"


def resolve_checkpoint(name: str) -> str:
    """The folder of a policy, of weights or adapters, or a hub id, from what a user names.

    Paths stay relative where they were given so. A run that goes on has another newest checkpoint later: keep what this
    returns, not the run's name.

    Raises:
        ValueError: The run holds no complete checkpoint, or the checkpoint of a run is damaged.
    """
    if name == DEMO_CHECKPOINT:
        return name
    named = Path(name)
    if (named / "checkpoints").is_dir():
        newest = latest_checkpoint(named)
        if newest is None:
            raise ValueError(f"{name} is the folder of a run, but holds no complete checkpoint")
        return str(newest / _POLICY)
    step = checkpoint_of_run(name)
    if step is None:
        return name
    try:
        verify_checkpoint(step)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    return name if named.resolve() != step else str(named / _POLICY)


def absolute_checkpoint(name: str) -> str:
    """What `resolve_checkpoint` returns, absolute where it is a folder: the same from any working directory."""
    found = resolve_checkpoint(name)
    return str(Path(found).resolve()) if found != DEMO_CHECKPOINT and Path(found).is_dir() else found


def checkpoint_of_run(name: str) -> Path | None:
    """The checkpoint of a run (`.../checkpoints/step_000010`, absolute) that a folder is, or that it holds the policy of."""
    folder = Path(name).resolve()
    step = folder.parent if folder.name == _POLICY else folder
    return step if step in list_checkpoints(step.parent.parent) else None
