"""What a policy must fit and return, checked where it meets the envs: before the first episode, and at every decision."""

import numpy as np

from vla_train.policy.base import Policy
from vla_train.types import IMAGE, INSTRUCTION, EnvDescription, PolicyOutput


def require_fit(policy: Policy, env: EnvDescription) -> None:
    """Refuse a policy that cannot play an env.

    Raises:
        ValueError: It decides other actions, or reads what the env does not observe.
    """
    if policy.action_dim != env.action_dim:
        raise ValueError(f"the policy decides actions of {policy.action_dim} numbers, the env takes {env.action_dim}")
    for key in policy.observation_keys:
        if key == INSTRUCTION and not env.has_instruction:
            raise ValueError("the policy reads an instruction, and the env gives none: set env.instruction")
        if key != INSTRUCTION and key not in env.observations:
            hint = ": set env.image_key (render takes what render() draws)" if key == IMAGE else ""
            raise ValueError(f"the policy reads {key!r}, the env observes {', '.join(env.observations) or 'nothing'}{hint}")


def check_output(output: PolicyOutput, rows: int, policy: Policy) -> None:
    """Refuse a wrong decision of B rows.

    Raises:
        ValueError: An array has a wrong shape, or holds NaN or infinity.
    """
    expected = (rows, policy.chunk_size, policy.action_dim)
    if output.actions.shape != expected:
        raise ValueError(f"the policy's actions must have shape {expected}, got {output.actions.shape}")
    for name, array in output.decision.items():
        if array.shape[:1] != (rows,):
            raise ValueError(f"the policy's {name} must have {rows} rows, got shape {array.shape}")
    for name, array in {"actions": output.actions, **output.decision}.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"the policy's {name} contain NaN or infinity")
