"""What the rollout asks of a policy, and what the trainer asks besides. The pipeline knows these protocols only."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vla_train.types import Observation, PolicyOutput

if TYPE_CHECKING:
    import torch


class Policy(Protocol):
    """Chooses a chunk of actions for each row of a mixed batch; rows do not influence each other."""

    @property
    def chunk_size(self) -> int:
        """K: env steps per decision."""
        ...

    @property
    def action_dim(self) -> int:
        """A."""
        ...

    version: int
    """Of the weights that decide: how many updates have changed them."""

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        """Decide for B rows.

        Args:
            observation: B rows, from any mixture of env groups.
            uniforms: (B, T) float32 in [0, 1), one per token: the token is drawn by inverting the cumulative distribution,
                so that a row's sample depends on its own numbers only. None takes the likeliest token.
            temperature: Softmax temperature of the sampling distribution and of the log-probs returned.
        """
        ...


class RolloutPolicy(Policy, Protocol):
    """A policy that samples, in this process or elsewhere, and takes the trainer's weights."""

    def load_weights(self, weights: Mapping[str, "torch.Tensor"], *, version: int) -> None:
        """Take the weights of another copy of the same module (by parameter name) and its version."""
        ...


class TrainablePolicy(RolloutPolicy, Protocol):
    """A policy whose weights the trainer updates."""

    def trainable_module(self) -> "torch.nn.Module":
        """The module whose parameters the optimizer sees (the adapters' parents under LoRA)."""
        ...

    def evaluate_tokens(
        self, observation: Observation, token_ids: "torch.Tensor", *, temperature: float
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Log-probs and entropies (R, T) float32 of given tokens, with gradients; equal to `act`'s for the same weights."""
        ...

    def save_pretrained(self, folder: str) -> None:
        """Write a checkpoint in the published layout, adapters merged."""
        ...
