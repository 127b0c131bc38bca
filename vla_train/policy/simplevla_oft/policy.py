"""SimpleVLA-OFT in this process: decides for mixed batches of rows, and recomputes log-probs with gradients.

Sampling and training share every step from pixels to log-probs (`preprocess`, the model, `action_logprobs`), so the log-probs
of unchanged weights agree to floating-point error. Softmax, log-probs and entropy are float32 over the action bins.

B rows, L prompt ids, T = K * A action tokens.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_train.errors import DivergedError
from vla_train.policy.cuda_graphs import GraphedFunction, GraphedGradients
from vla_train.policy.precision import keep_sums_whole
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.action_tokens import ActionCodec, ActionStatistics
from vla_train.policy.simplevla_oft.adapter_files import num_published_values
from vla_train.policy.simplevla_oft.checkpoint_saving import snapshot_adapters
from vla_train.policy.simplevla_oft.images import ImageSettings, preprocess
from vla_train.policy.simplevla_oft.lora import AdaptersInProducts, lora_layers
from vla_train.policy.simplevla_oft.prompts import PromptEncoder
from vla_train.types import IMAGE, INSTRUCTION, Observation, PolicyOutput

_log = logging.getLogger(__name__)
_PREPROCESSOR_FILE = "preprocessor_config.json"
_LENGTH_BUCKET = 8
"""Where shapes are compiled, rows of different length are padded until this divides the number of their positions: the
alignment that masked attention wants."""
_MOST_IN_GRAPHS = 1 / 32
"""Share of a GPU's memory that graphs may keep for gradients. Where they would take more, the model is so large that launches
should take little time beside its arithmetic; the share is an estimate, not measured."""


def action_logprobs(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Float32 log-probabilities over the last dimension at a temperature."""
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Indices (...) drawn from (..., bins) by inverting the cumulative distribution at `uniforms` (...) in [0, 1)."""
    cumulative = logprobs.exp().cumsum(-1)
    threshold = uniforms.unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative <= threshold).sum(-1).clamp_(max=logprobs.shape[-1] - 1)


def choose(logits: Tensor, uniforms: Tensor | None, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """Indices (B, T) drawn from logits (B, T, bins) at `uniforms` (B, T), or the likeliest, and their log-probs."""
    logprobs = action_logprobs(logits, temperature)
    indices = logprobs.argmax(-1) if uniforms is None else draw(logprobs, uniforms)
    return indices, logprobs.gather(-1, indices[..., None]).squeeze(-1)


def batch_bucket(num_rows: int) -> int:
    """The batch size to pad to where shapes are compiled: at most an eighth more rows, few different sizes."""
    step = 1 << max(0, (num_rows - 1).bit_length() - 4)
    return -(-num_rows // step) * step


def _padded(num_rows: int, wanted: int) -> slice | np.ndarray:
    """What selects all of `num_rows` rows, and the first one again until there are as many as wanted."""
    if num_rows >= wanted:
        return slice(None)
    return np.concatenate([np.arange(num_rows), np.zeros(wanted - num_rows, int)])


def worth_graphs(gradient_bytes: int, memory_bytes: int) -> bool:
    """Whether updates whose gradients take so much of a GPU's memory are to be CUDA graphs, which keep them."""
    return gradient_bytes <= _MOST_IN_GRAPHS * memory_bytes


def _trained_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)


class SimpleVLAOFTPolicy:
    """A `TrainablePolicy`: see `vla_train.policy.base`."""

    takes_tensors = True

    def __init__(
        self,
        model: SimpleVLAOFT,
        *,
        prompts: PromptEncoder,
        images: ImageSettings,
        codec: ActionCodec,
        graphs: bool,
        recompute_by_memory: bool = False,
    ) -> None:
        """`graphs`: compile the blocks and replay `act` and updates as CUDA graphs (only CUDA has them), for fixed shapes.
        `recompute_by_memory`: a trainer may say of how many blocks activations are recomputed."""
        self.model = model
        self._prompts = prompts
        self._images = images
        self._codec = codec
        self._buckets = graphs
        if graphs:
            model.compile_blocks()
        on_cuda = model.device.type == "cuda"
        if on_cuda:
            keep_sums_whole()
        self._sample = GraphedFunction(self._decide, model) if graphs and on_cuda else self._decide
        self._graphed_logits = self._graph_of_updates() if graphs and on_cuda else None
        self.recompute = self._recompute if recompute_by_memory else None
        """See `TrainablePolicy`."""
        self._adapters = AdaptersInProducts(model)
        self.version = 0
        """Of the weights: how many updates have changed them."""

    @property
    def chunk_size(self) -> int:
        return self.model.config.chunk_size

    @property
    def action_dim(self) -> int:
        return self.model.config.action_dim

    @property
    def observation_keys(self) -> tuple[str, ...]:
        return IMAGE, INSTRUCTION

    @property
    def num_uniforms(self) -> int:
        """One per action token."""
        return self.model.config.num_action_tokens

    @property
    def codec(self) -> ActionCodec:
        """Tokens to actions and back."""
        return self._codec

    @property
    def played_with(self) -> dict[str, Any]:
        """What was settled about how it plays."""
        return {
            "images": self._images.path,
            "jpeg": self._images.jpeg,
            "statistics": self.model.config.unnorm_key,
            "gripper": self._codec.gripper or "as decoded",
        }

    @property
    def crop_area(self) -> float:
        """Share of the image's area that the model sees."""
        return self._images.crop_area

    def use_statistics(self, name: str, statistics: Mapping[str, Any]) -> None:
        """Divide what these statistics span into bins; the gripper is played as decoded. See `SupervisedPolicy`.

        Raises:
            ValueError: They are of actions of another size, or not finite.
        """
        spans = ActionStatistics.from_json(statistics, name=name)
        if len(spans.low) != self.action_dim:
            raise ValueError(f"statistics {name!r}: actions of {len(spans.low)} numbers, the policy's have {self.action_dim}")
        self._codec = replace(self._codec, statistics=spans, gripper=None)
        known = {**self.model.config.norm_stats, name: statistics}
        self.model.config = replace(self.model.config, norm_stats=known, unnorm_key=name, gripper=None)

    def targets(self, actions: np.ndarray, *, label_step: float) -> dict[str, np.ndarray]:
        """The `token_ids` of actions; see `SupervisedPolicy.targets`."""
        return {"token_ids": self._codec.encode(actions, step=label_step)}

    @torch.no_grad()
    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        """Decide for B rows; see `Policy.act`."""
        num_rows, num_tokens = len(observation), self.model.config.num_action_tokens
        if uniforms is not None and uniforms.shape != (num_rows, num_tokens):
            raise ValueError(f"uniforms must be ({num_rows}, {num_tokens}), got {uniforms.shape}")
        indices, logprobs = self._choose(observation, uniforms, temperature)
        token_ids = indices.cpu().numpy().astype(np.int32) + self.model.config.first_action_id
        chosen = logprobs.cpu().numpy()
        if not np.isfinite(chosen).all():
            raise DivergedError(f"the policy's log-probs are not finite at version {self.version}: its weights have diverged")
        return PolicyOutput(
            actions=self._codec.decode(token_ids),
            decision={"token_ids": token_ids, "logprobs": chosen},
            policy_version=self.version,
        )

    def evaluate(self, observation: Observation, decision: Mapping[str, Tensor], *, temperature: float) -> dict[str, Tensor]:
        """`logprobs`, `entropies` (R, T) float32 with gradients, `likeliest`; see `TrainablePolicy.evaluate`."""
        config, token_ids = self.model.config, decision["token_ids"]
        expected = (len(observation), config.num_action_tokens)
        if tuple(token_ids.shape) != expected:
            raise ValueError(f"token_ids must be {expected}, got {tuple(token_ids.shape)}")
        self._adapters.refresh()
        num_rows, graphed = len(observation), self._graphed_logits
        compute: Callable[..., Tensor] = self._logits
        if graphed is not None and torch.is_grad_enabled() and not self.model.sharded:
            compute, observation = graphed, observation.select(_padded(num_rows, graphed.num_rows))
        logits = compute(self._to_device(observation[IMAGE]), *self._prompt_tensors(observation.instructions))[:num_rows]
        logprobs = action_logprobs(logits, temperature)
        indices = token_ids.to(self.device, torch.long) - config.first_action_id
        chosen = logprobs.gather(-1, indices[..., None]).squeeze(-1)
        return {
            "logprobs": chosen,
            "entropies": -(logprobs.exp() * logprobs).sum(-1),
            "likeliest": chosen.detach() >= logprobs.detach().amax(-1),
        }

    def _recompute(self, share: float) -> None:
        self.model.recompute(share)
        if self._graphed_logits is not None:
            self._graphed_logits = self._graph_of_updates()

    def _graph_of_updates(self) -> GraphedGradients | None:
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return GraphedGradients(self._logits, self.model) if worth_graphs(_trained_bytes(self.model), memory) else None

    @property
    def graphed_bytes(self) -> int:
        """See `TrainablePolicy`."""
        return 0 if self._graphed_logits is None else _trained_bytes(self.model)

    def trainable_module(self) -> SimpleVLAOFT:
        return self.model

    def load_weights(self, weights: Mapping[str, Tensor], *, version: int) -> None:
        """Copy weights by parameter name, at least all trainable ones; see `RolloutPolicy.load_weights`.

        Raises:
            ValueError: A name is unknown or missing, or a shape differs; nothing has changed then.
        """
        parameters = dict(self.model.named_parameters())
        for name, tensor in weights.items():
            if name not in parameters:
                raise ValueError(f"weights hold {name}, which this policy does not have")
            if tensor.shape != parameters[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(parameters[name].shape)}")
        missing = [name for name, parameter in parameters.items() if parameter.requires_grad and name not in weights]
        if missing:
            raise ValueError(f"weights lack {len(missing)} trainable parameters, the first is {missing[0]}")
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name].copy_(tensor)
        self.version = version

    def save_pretrained(self, folder: str) -> None:
        """Write the adapters alone where there are some on a checkpoint that can be named, else the published layout."""
        model = self.model
        if (base := self._base) is None:
            model.save_pretrained(folder)
        else:
            snapshot_adapters(model, base=base, config=model.config, companions=model.companion_files)(Path(folder))

    def snapshot(self, copy: Callable[[Tensor], Tensor]) -> Callable[[Path], list[Path]]:
        """What `save_pretrained` would write now, to be written while the weights are trained; see `TrainablePolicy`."""
        model = self.model
        if (base := self._base) is None:
            return model.snapshot(copy)
        return snapshot_adapters(model, base=base, config=model.config, companions=model.companion_files)

    @property
    def export_bytes(self) -> int:
        """Size of what `save_pretrained` writes."""
        num_values = self.model.num_weights if self._base is None else num_published_values(self.model)
        return num_values * self.model.dtype.itemsize + sum(map(len, self.model.companion_files.values()))

    @property
    def _base(self) -> str | None:
        """The checkpoint under the adapters; None where there are none, or none that can be named."""
        return self.model.base_checkpoint if lora_layers(self.model) else None

    @property
    def device(self) -> torch.device:
        return self.model.device

    def _choose(self, observation: Observation, uniforms: np.ndarray | None, temperature: float) -> tuple[Tensor, Tensor]:
        """Bin indices and log-probs (B, T) of what is decided for B rows."""
        self._adapters.refresh()
        num_rows = len(observation)
        rows = _padded(num_rows, batch_bucket(num_rows) if self._buckets else num_rows)
        padded = observation.select(rows)
        numbers = None if uniforms is None else self._to_device(np.asarray(uniforms[rows], np.float32))
        with self._beside_simulators():
            indices, logprobs = self._sample(
                self._to_device(padded[IMAGE]),
                *self._prompt_tensors(padded.instructions),
                numbers,
                torch.tensor(temperature, device=self.device),
            )
        return indices[:num_rows], logprobs[:num_rows]

    def _decide(
        self, frames: Tensor, prompt_ids: Tensor, mask: Tensor | None, uniforms: Tensor | None, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Bin indices and log-probs (B, T) of B frames (B, H, W, 3)."""
        return choose(self._logits(frames, prompt_ids, mask, for_gradients=False), uniforms, temperature)

    def _logits(self, frames: Tensor, prompt_ids: Tensor, mask: Tensor | None, *, for_gradients: bool = True) -> Tensor:
        with torch.no_grad():
            pixel_values = preprocess(frames, self._images)
        return self.model(pixel_values, prompt_ids, mask, for_gradients=for_gradients)

    @contextlib.contextmanager
    def _beside_simulators(self) -> Iterator[None]:
        """On a CPU, sample with half of the cores: a team of threads goes at the pace of the one that simulators put aside."""
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1:
            yield
            return
        torch.set_num_threads(max(1, threads // 2))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _prompt_tensors(self, instructions: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        config = self.model.config
        ids, mask = self._prompts.batch(
            instructions,
            one_width=self._buckets,
            multiple_of=_LENGTH_BUCKET if self._buckets else 1,
            beside=config.num_patches + config.num_action_tokens + 1,
        )
        return ids.to(self.device, non_blocking=True), None if mask is None else mask.to(self.device, non_blocking=True)

    def _to_device(self, array: np.ndarray | Tensor) -> Tensor:
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self.device, non_blocking=True)
