"""Calls of the policy that were begun: see `PolicyCall` in `policy.base`."""

from dataclasses import dataclass
from typing import Any

from vla_train.pipeline.messages import PolicyBatch
from vla_train.policy.base import PolicyCall
from vla_train.types import PolicyOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCall:
    """A batch that the policy was asked to decide."""

    batch: PolicyBatch
    observations: dict[str, Any]
    """(B, ...) each: what its rows observe."""
    parts: list[PolicyCall]
    """The calls that it took, more than one for more rows than a call may have."""
    began: float
    """`time.perf_counter()` reading."""

    def ready(self, wait_s: float) -> bool:
        """Whether all is decided; waits so many seconds for it. Calls are decided in their order."""
        return self.parts[-1].ready(wait_s)


class DecidedCall:
    """The `PolicyCall` of a policy that decides at once."""

    def __init__(self, output: PolicyOutput) -> None:
        self._output = output

    def ready(self, wait_s: float) -> bool:
        return True

    def result(self) -> PolicyOutput:
        return self._output
