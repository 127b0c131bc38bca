"""SimpleVLA-OFT that PyTorch trains and vLLM samples: one policy, two copies of the network in one process.

    act       vLLM's logits --our softmax, temperature and draw--> tokens, log-probs      (the engine's copy of the weights)
    evaluate  PyTorch, with gradients                                                     (the copy that is trained)

Invariant: the engine decides with the weights of `version`. It is started at the first decision, and takes the trained weights
whenever their version is another than its own, adapters merged in float32. vLLM gives logits and nothing else: the tokens and
their log-probs are ours, as with PyTorch, so the ratios of an update are taken against what sampling saw.
"""

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft.build import build_as
from vla_train.policy.simplevla_oft.checkpoint_saving import plain_weights
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy, choose
from vla_train.policy.vllm.options import EngineOptions, check_options, require_one_process, with_precision
from vla_train.types import IMAGE, EnvDescription, Observation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vla_train.policy.vllm.engine import ActionEngine

__all__ = ["VLLMPolicy", "build_policy", "check_options"]


class VLLMPolicy(SimpleVLAOFTPolicy):
    """A `TrainablePolicy` whose `act` runs on vLLM; see `vla_train.policy.base`."""

    takes_tensors = False

    def __init__(self, *parts: Any, options: EngineOptions, compiled: bool, **named_parts: Any) -> None:
        """`parts` as for `SimpleVLAOFTPolicy`; `compiled`: let vLLM compile the language model and make CUDA graphs."""
        super().__init__(*parts, **named_parts)
        self._options = options
        self._compiled = compiled
        self._engine: ActionEngine | None = None
        self._engine_version: int | None = None
        """Of the weights that the engine has; None where it has none."""

    def load_weights(self, weights: "Mapping[str, Tensor]", *, version: int) -> None:
        """As `SimpleVLAOFTPolicy.load_weights`; the engine takes them at the next decision."""
        super().load_weights(weights, version=version)
        self._engine_version = None

    def rest(self) -> None:
        """Give the engine's GPU memory back until the next decision, where that was asked for; see `base.Policy`."""
        if self._options.sleep and self._engine is not None and not self._engine.asleep:
            self._engine.sleep()
            self._engine_version = None

    def _choose(self, observation: Observation, uniforms: np.ndarray | None, temperature: float) -> tuple[Tensor, Tensor]:
        frames = torch.from_numpy(np.ascontiguousarray(observation[IMAGE]))
        prompts = [self._prompts.ids(instruction) for instruction in observation.instructions]
        logits = self._current_engine().logits(frames, prompts).to(self.device)
        numbers = None if uniforms is None else self._to_device(np.asarray(uniforms, np.float32))
        return choose(logits, numbers, temperature)

    def _current_engine(self) -> "ActionEngine":
        """The engine, awake, with the present weights."""
        if self._engine is None:
            self._engine = self._start()
        if self._engine.asleep:
            self._engine.wake()
        if self._engine_version != self.version:
            self._engine.load((name, weight.read()) for name, weight in plain_weights(self.model).items())
            self._engine_version = self.version
        return self._engine

    def _start(self) -> "ActionEngine":
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vLLM is imported; it says a page at each start
        from vla_train.policy.vllm.engine import ActionEngine

        return ActionEngine(
            self.model.config, self._images, dtype=self.model.dtype, compiled=self._compiled, options=self._options
        )


def build_policy(config: PolicyConfig, env: EnvDescription, *, seed: int) -> VLLMPolicy:
    """The policy that `simplevla_oft` builds, sampled by vLLM; see `policy.base.PolicyFactory`.

    Args:
        config: As for `simplevla_oft`; `kwargs` are `EngineOptions`.
        env: What it plays.
        seed: Of random weights.

    Raises:
        ValueError, ImportError: `check_options` refuses the config, several ranks train, or the checkpoint cannot be read or
            does not fit the env.
    """
    check_options(config)
    if config.worker != "ray":
        require_one_process()
    config = with_precision(config)
    options = EngineOptions.from_kwargs(config.kwargs)
    return build_as(partial(VLLMPolicy, options=options, compiled=config.compile), config, env, seed=seed)
