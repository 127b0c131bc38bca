"""What the rollout asks of a policy, and what the trainer asks besides. Nothing else in the trainer knows more of a policy.

A policy reads some keys of the observation and decides a chunk of actions. Whatever else there is to a decision (token ids and
log-probs, the noise of a flow, ...) it gives along in `PolicyOutput.decision`, and gets back from the trainer in `evaluate`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vla_train.config import PolicyConfig
from vla_train.types import EnvDescription, Observation, PolicyOutput

if TYPE_CHECKING:
    import torch


class PolicyCall(Protocol):
    """A call of `act` that was begun."""

    def ready(self, wait_s: float) -> bool:
        """Whether `result` would not wait; waits so many seconds for that."""
        ...

    def result(self) -> PolicyOutput:
        """What `act` would have returned, or what it would have raised; asked for once, of the oldest call."""
        ...


class Policy(Protocol):
    """Chooses a chunk of actions for each row of a mixed batch; rows do not influence each other.

    One that sets an attribute `takes_tensors` to True is given what an env observes on a GPU as PyTorch tensors there. One that
    has settled how it plays (how it prepares images, say) may name that in an attribute `played_with`, a mapping of plain
    values, which evaluations print and write down. One that holds memory which only decisions need may have `rest()`, which is
    called before an update: the next `act` takes it again. One that holds what must be given back has `close()`, called once
    it has decided for the last time.

    One that decides elsewhere may have `begin_act`, which takes what `act` takes and returns a `PolicyCall` at once: two may be
    under way then, so that the rows of one are brought together while the other is decided. They are decided in the order in
    which they were begun, by the weights of that time.
    """

    @property
    def chunk_size(self) -> int:
        """K: env steps per decision."""
        ...

    @property
    def action_dim(self) -> int:
        """A."""
        ...

    @property
    def observation_keys(self) -> tuple[str, ...]:
        """Keys of the observation that it reads, such as image, wrist_image or state; no others are copied.

        "instruction" among them means that it needs one.
        """
        ...

    @property
    def num_uniforms(self) -> int:
        """Random numbers that it takes to draw one decision."""
        ...

    version: int
    """Of the weights that decide: how many updates have changed them."""

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        """Decide for B rows.

        Args:
            observation: B rows, from any mixture of workers.
            uniforms: (B, num_uniforms) float32 in [0, 1): all randomness there is, so that a row's sample depends on its own
                numbers only. None decides greedily: the likeliest action.
            temperature: Of the sampling distribution: above 1 explores more.
        """
        ...


class RolloutPolicy(Policy, Protocol):
    """A policy that samples, in this process or elsewhere, and takes the trainer's weights."""

    def load_weights(self, weights: Mapping[str, "torch.Tensor"], *, version: int) -> None:
        """Take the weights of another copy of the same module (by parameter name) and its version."""
        ...


class TrainablePolicy(RolloutPolicy, Protocol):
    """A policy whose weights the trainer updates.

    One that can recompute activations to save memory may have `recompute(share)`, which a trainer on a GPU calls with the
    share (0 to 1) that memory asks for; None where that is not the trainer's to say. One whose CUDA graphs keep memory for
    gradients says how many bytes in a property `graphed_bytes`.

    One that can be trained on while it is being written has `snapshot(copy)`: it takes what `save_pretrained` would write now,
    each tensor through `copy`, which gives a copy in host memory. It returns a function that writes this rank's part into a
    folder (a `Path`), in another thread, and returns the files. With sharded weights all ranks call both.
    """

    def trainable_module(self) -> "torch.nn.Module":
        """The module whose parameters the optimizer sees (the adapters' parents under LoRA)."""
        ...

    def evaluate(
        self, observation: Observation, decision: Mapping[str, "torch.Tensor"], *, temperature: float
    ) -> Mapping[str, "torch.Tensor"]:
        """What the loss needs to know of given decisions, with gradients.

        Args:
            observation: R rows.
            decision: (R, ...) each: what `act` gave, on the module's device.
            temperature: The one of `act`.

        Returns:
            Tensors of R rows. The built-in losses want `logprobs`, and `entropies` where there are any: float32 (R, T), T a
            multiple of K with the numbers of one action side by side, or (R,) for the whole chunk. `likeliest`, bool of the
            same shape, says where nothing is likelier than what was decided.
        """
        ...

    def save_pretrained(self, folder: str) -> None:
        """Write a checkpoint that the same factory reads as `policy.checkpoint`. On several ranks all call this, and it
        is complete when all have returned.

        A policy that writes less than all its weights says how many bytes in a property `export_bytes`.
        """
        ...


class SupervisedPolicy(TrainablePolicy, Protocol):
    """A policy that demonstrations can teach: it tells how it would have decided the actions of others."""

    @property
    def crop_area(self) -> float:
        """Share of an image's area that it looks at, from the centre; 1 is the whole image."""
        ...

    def use_statistics(self, name: str, statistics: Mapping[str, Any]) -> None:
        """Stretch the range of its actions over those of a dataset, from now on and in checkpoints.

        Args:
            name: Of the dataset.
            statistics: One entry of OpenVLA's `dataset_statistics.json`, of actions in the env's own units.
        """
        ...

    def targets(self, actions: np.ndarray, *, label_step: float) -> dict[str, np.ndarray]:
        """What `evaluate` takes, and `act` would have given along, for chunks of actions that somebody else decided.

        Args:
            actions: (R, K, A) in the env's own units.
            label_step: Round normalised actions, which span -1 to 1, to multiples of this first; 0 does not.

        Returns:
            Arrays of R rows.
        """
        ...


class PolicyFactory(Protocol):
    """What `policy.factory` names: builds the policy of a run."""

    def __call__(self, config: PolicyConfig, env: EnvDescription, *, seed: int) -> TrainablePolicy:
        """Build it.

        Args:
            config: The run's; `config.checkpoint` is a folder that `save_pretrained` wrote (or one of the factory's own
                kinds) or None, and `config.kwargs` holds what the user gave besides.
            env: The env it will play.
            seed: Of random weights.

        Raises:
            ValueError: It cannot be built so, or does not fit the env; the message says what to change.
        """
        ...
