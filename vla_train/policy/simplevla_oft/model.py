"""SimpleVLA-OFT: image and instruction in, logits of a whole chunk of action tokens out, in one bidirectional pass.

    pixels --DINOv2--+
           --SigLIP--+--projector--> patches --+
    [BOS | patches | prompt | T zeros | stop | padding] --Llama, no causal mask--> T positions --head--> (B, T, bins)

Only what an action needs is computed: neither tower runs its last block, the last layer of the language model and its head
run on the T positions that predict actions, and the head multiplies the rows of the action tokens alone.

B rows, L prompt ids, P patches, T = K * A action tokens, S = L + P + T + 1 positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from vla_train.policy.simplevla_oft.adapter_files import fuse, require_fit
from vla_train.policy.simplevla_oft.checkpoint import CheckpointFiles, fill, open_checkpoint
from vla_train.policy.simplevla_oft.checkpoint_saving import plain_weights, save, snapshot
from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.llama import LanguageModel, rotary_tables
from vla_train.policy.simplevla_oft.lora import put_adapter
from vla_train.policy.simplevla_oft.vision import LayerScale, VisionTower

_HEAD = "language_model.lm_head"
"""Is read row by row, past any adapter."""
_COMPILED_VARIANTS = 64
"""Of one function: the two towers share one, and each has variants with and without gradients, mask, and several rows."""


class VisionBackbone(nn.Module):
    """The two towers, under their published names."""

    def __init__(self, config: SimpleVLAOFTConfig) -> None:
        super().__init__()
        self.featurizer = VisionTower(config.towers[0], config.image_size)
        self.fused_featurizer = VisionTower(config.towers[1], config.image_size)

    @property
    def towers(self) -> tuple[VisionTower, VisionTower]:
        return self.featurizer, self.fused_featurizer

    def forward(self, pixel_values: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """(B, 6, H, W) to (B, P, both towers' widths); `run` computes one block."""
        features = []
        for tower, pixels in zip(self.towers, pixel_values.split(3, dim=1), strict=True):
            x = tower.embed(pixels)
            for block in tower.used_blocks:
                x = run(block, x)
            features.append(x[:, tower.num_prefix_tokens :])
        return torch.cat(features, dim=-1)


class Projector(nn.Module):
    """Patch features to the language model's width."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_width, 4 * in_width)
        self.fc2 = nn.Linear(4 * in_width, out_width)
        self.fc3 = nn.Linear(out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """The language model's input without its patches."""

    token_ids: Tensor
    """(B, L + T + 1): prompt, placeholders, stop, padding at the right end."""
    is_placeholder: Tensor
    """(B, L + T + 1) bool."""
    lengths: Tensor
    """(B,) prompt ids of each row."""


class SimpleVLAOFT(nn.Module):
    """The policy network. Its `forward` is `action_logits`, so that wrappers such as FSDP see every call."""

    def __init__(self, config: SimpleVLAOFTConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(sum(tower.width for tower in config.towers), config.language.hidden_size)
        self.language_model = LanguageModel(config.language)
        self._recomputed: set[int] = set()
        """Identities of the blocks whose activations are recomputed in the backward pass."""
        self._compiled = False
        self.companion_files: dict[str, bytes] = {}
        """Tokenizer, image settings and the like: files of the checkpoint that saving writes back as they were."""
        self.base_checkpoint: str | None = None
        """The checkpoint whose weights these are, adapters aside, by a name that finds it again; None where there is none."""
        for tower in self._towers:
            for module in tower.unused_modules:
                module.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path, *, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
    ) -> Self:
        """Load a checkpoint in the published layout, or adapters, which are merged into the weights of their base.

        Args:
            path_or_hub_id: Folder, or `owner/name` on the Hugging Face hub.
            dtype: Of the weights, whatever the files hold.
            device: Where the weights go; at no time is there a second copy of them.

        Raises:
            ValueError: It cannot be read; see `checkpoint.open_checkpoint` and `checkpoint.fill`.
        """
        return cls.from_files(open_checkpoint(path_or_hub_id), dtype=dtype, device=device)

    @classmethod
    def from_files(
        cls, files: CheckpointFiles, *, dtype: torch.dtype, device: str | torch.device, merge_adapters: bool = True
    ) -> Self:
        """Read the weights of a checkpoint whose other files were read before; see `from_pretrained`.

        Its adapters are merged into the weights, or stay adapters, trained and in `dtype`.
        """
        model = cls._empty(files.config, dtype=dtype, device=device)
        adapters = {}
        if files.adapters is not None:
            adapters = files.adapters.read()
            require_fit(adapters, model, where=files.adapters.file)
            if _HEAD in adapters and not merge_adapters:
                raise ValueError(f"{files.adapters.file} holds an adapter of {_HEAD}, which can only be merged: export it")
        merged = adapters if merge_adapters else {}
        fill(model, files.weights(), device=torch.device(device), adapters=merged)
        model.companion_files = files.companions
        model.base_checkpoint = None if merged else files.name
        if adapters and not merged:
            model.requires_grad_(False)
            for name, adapter in fuse(adapters, model).items():
                factors = (factor.to(device, dtype) for factor in (adapter.lora_a, adapter.lora_b))
                put_adapter(model, name, *factors, scaling=adapter.scaling)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint in the published layout, adapters merged; see `checkpoint_saving.save`."""
        save(self, Path(folder), dtype=self.dtype, config=self.config, companions=self.companion_files)

    def snapshot(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], list[Path]]:
        """What `save_pretrained` would write now, to be written later; see `checkpoint_saving.snapshot`."""
        return snapshot(self, copy, dtype=self.dtype, config=self.config, companions=self.companion_files)

    @classmethod
    def from_random(cls, config: SimpleVLAOFTConfig, *, seed: int, dtype: torch.dtype, device: str | torch.device) -> Self:
        """Untrained weights, made on `device`: matrices of deviation 1 / sqrt(inputs), nearly uniform action logits."""
        model = cls._empty(config, dtype=dtype, device=device)
        generator = torch.Generator(device=device).manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.weight.normal_(std=module.weight[0].numel() ** -0.5, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                    nn.init.ones_(module.weight)
                    if isinstance(module, nn.LayerNorm):
                        nn.init.zeros_(module.bias)
                elif isinstance(module, LayerScale):
                    nn.init.ones_(module.scale_factor)
                elif isinstance(module, nn.Embedding):
                    module.weight.normal_(generator=generator)
            for name, parameter in model.vision_backbone.named_parameters():
                if name.endswith(("pos_embed", "cls_token", "reg_token", "latent")):
                    parameter.normal_(std=0.2 if name.endswith("pos_embed") else 0.02, generator=generator)
            model.language_model.lm_head.weight.mul_(0.1)
        return model

    @classmethod
    def _empty(cls, config: SimpleVLAOFTConfig, *, dtype: torch.dtype, device: str | torch.device) -> Self:
        """The module with uninitialised weights; nothing is computed twice or held in another dtype first."""
        with torch.device("meta"):
            model = cls(config)
        return model.to(dtype).to_empty(device=device)

    @property
    def _towers(self) -> tuple[VisionTower, VisionTower]:
        return self.vision_backbone.towers

    @property
    def device(self) -> torch.device:
        return self.language_model.lm_head.weight.device

    @property
    def num_weights(self) -> int:
        """In whatever precision they are kept; without adapters."""
        return sum(weight.shape.numel() for weight in plain_weights(self).values())

    @property
    def sharded(self) -> bool:
        """Whether the weights are spread over several ranks."""
        return any(isinstance(parameter, DTensor) for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen or full weights; adapters may differ."""
        return self.language_model.lm_head.weight.dtype

    @property
    def blocks(self) -> list[nn.Module]:
        """Transformer blocks that run, in order: what to shard, checkpoint or compile one by one."""
        return [*self._towers[0].used_blocks, *self._towers[1].used_blocks, *self.language_model.model.layers]

    def adaptable_layers(self, which: Literal["all", "language"]) -> list[str]:
        """Names of the linear layers that adapters go on: all that run, or those of the language model; never its head."""
        used = {id(block) for block in self.language_model.model.layers}
        if which == "all":
            used |= {id(block) for block in self.blocks} | {id(self.projector)}
        return [
            f"{name}.{inner}".removesuffix(".base_layer")
            for name, module in self.named_modules()
            if id(module) in used
            for inner, layer in module.named_modules()
            if isinstance(layer, nn.Linear)
        ]

    def recompute(self, share: float) -> None:
        """Recompute activations of at least this share (0 to 1) of the blocks in the backward pass, the same of every stack."""
        stacks = [*(tower.used_blocks for tower in self._towers), list(self.language_model.model.layers)]
        self._recomputed = {id(block) for stack in stacks for block in stack[: math.ceil(share * len(stack))]}

    def compile_blocks(self, *, backend: str = "inductor") -> None:
        """Compile every block in place. Blocks of a kind share their code, so it is compiled once, not once a layer, and for
        all sizes at once, but for a batch of one row.

        With and without gradients other operations are fused. Each result is rounded where the uncompiled model rounds it, or
        the two would not give the same log-probs.
        """
        for block in self.blocks:
            block.compile(backend=backend, options=_inductor_options() if backend == "inductor" else None)
        self._compiled = True

    def action_logits(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of the action tokens.

        Args:
            pixel_values: (B, 6, H, W), channels 0-2 normalised for DINOv2 and 3-5 for SigLIP.
            input_ids: (B, L) prompts, the first id BOS; padding on either side.
            attention_mask: (B, L), nonzero on prompt ids; None if no row is padded.

        Returns:
            (B, T, bins): the ids `config.first_action_id` and on, in order.
        """
        return self(pixel_values, input_ids, attention_mask)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        for_gradients: bool = True,
    ) -> Tensor:
        """See `action_logits`. Without `for_gradients` there will be no backward pass."""
        if self._compiled:
            _allow_variants()
        if for_gradients:
            return self._logits(pixel_values, input_ids, attention_mask)
        # What is compiled with gradients adds up in another order than what is compiled without, and layers amplify a last bit
        # that differs, most of all where it becomes another FP8 number: so sampling runs what training runs, and keeps nothing.
        with torch.set_grad_enabled(self._compiled):
            return self._logits(pixel_values, input_ids, attention_mask, keep=False).detach()

    def _logits(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None, *, keep: bool = True) -> Tensor:
        patches = self.projector(self.patch_features(pixel_values, keep=keep))
        hidden = self.action_hidden(patches, input_ids, attention_mask, keep=keep)
        first = self.config.first_action_id
        return F.linear(hidden, self.language_model.lm_head.weight[first : first + self.config.num_bins])

    def patch_features(self, pixel_values: Tensor, *, keep: bool = True) -> Tensor:
        """(B, 6, H, W) to (B, P, both towers' widths)."""
        return self.vision_backbone(pixel_values.to(self.dtype), partial(self._run, keep=keep))

    def action_hidden(self, patches: Tensor, input_ids: Tensor, attention_mask: Tensor | None, *, keep: bool = True) -> Tensor:
        """Final hidden states (B, T, D) that predict the action tokens, given projected patches (B, P, D)."""
        config, llama = self.config, self.language_model.model
        sequence = self.token_sequence(input_ids, attention_mask)
        embedded = llama.embed_tokens(sequence.token_ids).masked_fill(sequence.is_placeholder[..., None], 0)
        x = torch.cat([embedded[:, :1], patches.to(embedded.dtype), embedded[:, 1:]], dim=1)
        num_patches, num_tokens = patches.shape[1], config.num_action_tokens
        places = torch.arange(x.shape[1], device=x.device)
        positions = (num_patches - 1 + sequence.lengths)[:, None] + places[:num_tokens]
        mask = None
        if attention_mask is not None:
            mask = (places < (num_patches + 1 + num_tokens + sequence.lengths)[:, None])[:, None, None]
        tables = rotary_tables(
            x.shape[1], config.language.head_dim, config.language.rope_theta, device=x.device, dtype=embedded.dtype
        )
        *layers, last = llama.layers
        for layer in layers:
            x = self._run(layer, x, tables, mask, keep=keep)
        return llama.norm(self._run(last, x, tables, mask, positions, keep=keep))

    def token_sequence(self, input_ids: Tensor, attention_mask: Tensor | None) -> TokenSequence:
        """Move each prompt to the left end and append placeholders and the stop token."""
        config = self.config
        num_rows, width = input_ids.shape
        if attention_mask is None:
            lengths = torch.full((num_rows,), width, device=input_ids.device)
        else:
            present = attention_mask.bool()
            lengths = present.sum(1)
            input_ids = input_ids.gather(1, present.logical_not().to(torch.uint8).argsort(dim=1, stable=True))
        padded = F.pad(input_ids, (0, config.num_action_tokens + 1), value=config.pad_token_id)
        offset = torch.arange(padded.shape[1], device=input_ids.device) - lengths[:, None]
        is_placeholder = (offset >= 0) & (offset < config.num_action_tokens)
        token_ids = padded.masked_fill(offset >= 0, config.pad_token_id)
        token_ids = token_ids.masked_fill(is_placeholder, config.placeholder_token_id)
        token_ids = token_ids.masked_fill(offset == config.num_action_tokens, config.stop_token_id)
        return TokenSequence(token_ids=token_ids, is_placeholder=is_placeholder, lengths=lengths)

    def _run(self, block: nn.Module, *arguments: Any, keep: bool) -> Tensor:
        """A block's output; without `keep`, what is needed for gradients ends with the block."""
        if self._compiled:
            for tensor in arguments:
                if tensor is not None:
                    _mark_sizes_that_vary(tensor)
        if not keep:
            y = block(*arguments)
            return y.detach().requires_grad_(y.requires_grad)
        if id(block) in self._recomputed and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)


def _mark_sizes_that_vary(tensor: Tensor) -> None:
    """Tell torch.compile which of a block's sizes change from call to call: rows and positions, but no width (the last
    dimension of numbers; masks and positions have none)."""
    for dimension in range(tensor.ndim - tensor.is_floating_point()):
        torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def _inductor_options() -> dict[str, bool]:
    """How the blocks are compiled."""
    from torch._inductor import config

    options = {"emulate_precision_casts": True}
    # PyTorch's own launcher of kernels holds Python's global lock while a GPU's queue is full: no other thread could go on with
    # a rollout, or hear that a rank is gone. Triton's does not.
    if hasattr(config, "use_static_cuda_launcher"):  # PyTorch 2.7 has none
        options["use_static_cuda_launcher"] = False
    return options


def _allow_variants() -> None:
    """Raise torch.compile's limit of variants of one function, past which it would silently stop compiling.

    Each thread has a limit of its own, and a rollout that overlaps the update samples in another one.
    """
    limits = torch._dynamo.config
    if limits.recompile_limit < _COMPILED_VARIANTS:
        limits.recompile_limit = _COMPILED_VARIANTS
