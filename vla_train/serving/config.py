"""What `serve` can be told; importing this needs neither torch nor a simulator. The text under each field is its `--help`."""

from dataclasses import dataclass, field
from typing import Literal

from vla_train.config import PolicyConfig
from vla_train.config_checks import check_at_least, check_fields, require
from vla_train.registry import is_trainable


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A policy, and where and how clients find it."""

    checkpoint: str
    """A run's folder (its newest checkpoint), one of its checkpoints, or a folder or hub id of weights or LoRA adapters."""
    protocol: Literal["vla-eval", "openpi"] = "vla-eval"
    """What clients speak: vla-eval (an action for each observation), or openpi (a whole chunk for each)."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in, whoever they are: there is no password."""
    port: int = 8000
    """Port to listen at; 0 takes a free one, which is printed."""
    max_batch: int = 64
    """Most observations of different clients in one policy call."""
    max_wait_s: float = 0.01
    """Seconds to wait for the other clients' observations, so that they share a call; 0 does not wait."""
    temperature: float = 0.0
    """0 decides greedily, above 0 samples at that temperature."""
    seed: int = 0
    """Seed of what is sampled."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, "", 1, "max_batch")
        check_at_least(self, "", 0, "max_wait_s", "temperature", "seed")
        require(0 <= self.port <= 65535, f"port must lie in 0 to 65535, got {self.port}")
        require(self.policy.checkpoint is None, "name the checkpoint with --checkpoint, not with policy.checkpoint")
        require(is_trainable(self.policy.factory), f"policy.factory {self.policy.factory} is served by somebody else already")
        require(self.policy.worker == "local", "serve runs the policy in its own process: policy.worker must be local")
