"""Actions as tokens: each dimension of each action is one of a few hundred bins, each bin one id of the vocabulary.

    token id --bin--> normalised value in [-1, 1] --dataset statistics--> stored action --gripper convention--> env action

Ids count down from the end of the tokenizer's vocabulary: the largest id is the smallest value. With n bins there are n
edges, evenly spaced over [-1, 1], and n - 1 centres; the smallest id (the value 1 exactly) shares the last centre.

T = K * A tokens, K actions of A dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_train.policy.simplevla_oft.config import Gripper

_EPS = 1e-8


def values_from_token_ids(token_ids: np.ndarray, *, vocab_end: int, num_bins: int) -> np.ndarray:
    """Normalised values (float64) of token ids; `vocab_end` is one past the largest action token's id.

    Raises:
        ValueError: An id is no action token.
    """
    if token_ids.size and (token_ids.min() < vocab_end - num_bins or token_ids.max() >= vocab_end):
        raise ValueError(
            f"action tokens are the ids {vocab_end - num_bins}..{vocab_end - 1}, got {token_ids.min()}..{token_ids.max()}"
        )
    edges = np.linspace(-1.0, 1.0, num_bins)
    centers = (edges[:-1] + edges[1:]) / 2
    return centers[np.minimum(vocab_end - 1 - token_ids, num_bins - 2)]


def token_ids_from_values(values: np.ndarray, *, vocab_end: int, num_bins: int) -> np.ndarray:
    """Token ids (int32) of normalised values; values outside [-1, 1] are clipped.

    Raises:
        ValueError: A value is NaN.
    """
    if np.isnan(values).any():
        raise ValueError("cannot tokenize NaN actions")
    edges = np.linspace(-1.0, 1.0, num_bins)
    return (vocab_end - np.digitize(np.clip(values, -1.0, 1.0), edges)).astype(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionStatistics:
    """How normalised values map to the actions of a dataset."""

    low: np.ndarray
    """(A,) the value of -1 (the 1 % quantile of the data)."""
    high: np.ndarray
    """(A,) the value of 1 (the 99 % quantile)."""
    mask: np.ndarray
    """(A,) bool: where it is false, values stay as they are."""

    @classmethod
    def from_bounds(cls, low: np.ndarray, high: np.ndarray) -> "ActionStatistics":
        """Every dimension mapped to the bounds of an action space.

        Raises:
            ValueError: A bound is infinite, or empty.
        """
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(f"the action space must be bounded for a policy that divides it into bins, got {low}..{high}")
        return cls(low=low.astype(np.float64), high=high.astype(np.float64), mask=np.ones(len(low), bool))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> "ActionStatistics":
        """From one dataset's entry of `dataset_statistics.json`.

        Raises:
            ValueError: A key is missing, shapes differ or a value is not finite; the message names `name` and the key.
        """
        action = data.get("action") if isinstance(data, Mapping) else None
        if not isinstance(action, Mapping):
            raise ValueError(f"dataset statistics {name!r} have no 'action'")
        missing = [key for key in ("q01", "q99") if key not in action]
        if missing:
            raise ValueError(f"dataset statistics {name!r}: action has no {missing[0]!r}")
        low, high = np.asarray(action["q01"], np.float64), np.asarray(action["q99"], np.float64)
        mask = np.asarray(action.get("mask", [True] * low.size), bool)
        if not low.shape == high.shape == mask.shape or low.ndim != 1:
            raise ValueError(
                f"dataset statistics {name!r}: q01, q99 and mask have shapes {low.shape}, {high.shape}, {mask.shape}"
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"dataset statistics {name!r}: q01 or q99 is not finite")
        return cls(low=low, high=high, mask=mask)

    def to_json(self) -> dict[str, Any]:
        """An entry of `dataset_statistics.json`."""
        return {"action": {"q01": self.low.tolist(), "q99": self.high.tolist(), "mask": self.mask.tolist()}}

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """(..., A) normalised values to actions."""
        return np.where(self.mask, 0.5 * (values + 1) * (self.high - self.low + _EPS) + self.low, values)

    def normalise(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `unnormalise`, clipped to [-1, 1] where it maps."""
        return np.where(self.mask, np.clip(2 * (actions - self.low) / (self.high - self.low + _EPS) - 1, -1, 1), actions)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionCodec:
    """Tokens to the env's actions and back."""

    statistics: ActionStatistics
    gripper: Gripper
    """"libero": data store the gripper as 0 close .. 1 open, the env wants +1 close, -1 open. None: played as decoded."""
    chunk_size: int
    vocab_end: int
    """One past the largest action token's id."""
    num_bins: int

    @property
    def action_dim(self) -> int:
        return len(self.statistics.low)

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        """(B, T) ids to (B, K, A) float32 actions in the env's units."""
        values = values_from_token_ids(token_ids, vocab_end=self.vocab_end, num_bins=self.num_bins)
        actions = self.statistics.unnormalise(values.reshape(-1, self.chunk_size, self.action_dim))
        if self.gripper == "libero":
            actions[..., -1] = -np.sign(2 * actions[..., -1] - 1)
        return actions.astype(np.float32)

    def encode(self, actions: np.ndarray, *, step: float = 0.0) -> np.ndarray:
        """(B, K, A) env actions to (B, T) int32 ids: the targets of supervised training.

        With a `step`, normalised values are rounded to its multiples first: fewer different targets.
        """
        if actions.shape[1:] != (self.chunk_size, self.action_dim):
            raise ValueError(f"actions must be (B, {self.chunk_size}, {self.action_dim}), got {actions.shape}")
        stored = np.array(actions, np.float64)
        if self.gripper == "libero":
            stored[..., -1] = (1 - stored[..., -1]) / 2
        values = self.statistics.normalise(stored)
        if step:
            values = np.round(values / step) * step
        ids = token_ids_from_values(values, vocab_end=self.vocab_end, num_bins=self.num_bins)
        return ids.reshape(len(actions), -1)
