"""One of several copies of a policy that share each batch, in a process of its own; and how a batch is shared. Knows no Ray."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_train.distributed.weights import PackedWeight, unpack_weights
from vla_train.policy.base import RolloutPolicy
from vla_train.types import Observation, PolicyOutput

if TYPE_CHECKING:
    from vla_train.distributed.weight_channel import WeightReceiver

_SAID = ("chunk_size", "action_dim", "observation_keys", "num_uniforms", "version")
"""What a replica says of its policy."""


class Replica:
    """A policy, and the end of a channel for its weights.

    Args:
        import_path: Where modules of the user's are found.
    """

    def __init__(self, import_path: Sequence[str]) -> None:
        sys.path += [entry for entry in import_path if entry not in sys.path]
        self._receiver: WeightReceiver | None = None

    def build(self, factory: Callable[[], RolloutPolicy]) -> dict[str, Any]:
        """What the policy says of itself."""
        self._policy = factory()
        said = {name: getattr(self._policy, name) for name in _SAID}
        return said | {"played_with": dict(getattr(self._policy, "played_with", {}))}

    def act(self, observation: Observation, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        """As `Policy.act`."""
        return self._policy.act(observation, uniforms=uniforms, temperature=temperature)

    def load_weights(self, weights: Mapping[str, PackedWeight], version: int) -> None:
        """Take weights from the object store."""
        self._policy.load_weights(unpack_weights(weights), version=version)

    def gpu_name(self) -> str | None:
        """See `weight_channel.gpu_name`."""
        from vla_train.distributed.weight_channel import gpu_name

        return gpu_name()

    def join_channel(self, address: tuple[str, int], rank: int, size: int, device_type: str, timeout_s: float) -> None:
        """Meet the sender and the other receivers; see `WeightReceiver`."""
        from vla_train.distributed.weight_channel import WeightReceiver

        self._receiver = WeightReceiver(address, rank=rank, size=size, device_type=device_type, timeout_s=timeout_s)

    def receive_weights(self, version: int) -> None:
        """Take weights from the channel.

        Raises:
            ChannelError: They did not arrive.
        """
        assert self._receiver is not None
        self._policy.load_weights(self._receiver.receive(), version=version)


def shares_of(
    replicas: int, observation: Observation, uniforms: np.ndarray | None
) -> list[tuple[Observation, np.ndarray | None]]:
    """The rows of a batch, and their random numbers, divided evenly and in order; fewer shares where there are fewer rows."""
    parts = [part for part in np.array_split(np.arange(len(observation)), replicas) if len(part)]
    slices = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
    return [(observation.select(rows), None if uniforms is None else uniforms[rows]) for rows in slices]


def joined_outputs(outputs: Sequence[PolicyOutput]) -> PolicyOutput:
    """What was decided of all rows."""
    return PolicyOutput(
        actions=np.concatenate([output.actions for output in outputs]),
        decision={name: np.concatenate([output.decision[name] for output in outputs]) for name in outputs[0].decision},
        policy_version=min(output.policy_version for output in outputs),
    )
