"""Adapters in the layout of Hugging Face's peft: `adapter_model.safetensors`, and `adapter_config.json`, which names the base.

    base_model.model.<published layer>.lora_A.weight (r, in)    .lora_B.weight (out, r)    scaling = lora_alpha / r

Published layers are apart where ours are one matrix (query, key, value; gate, up). On saving, the A that they share is written
for each, and B is cut by rows. On loading, equal A's become one again; different ones are stacked, with zeros in B for the
inputs that are another's. A pickle is never read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vla_train.policy.simplevla_oft.json_files import read_json
from vla_train.policy.simplevla_oft.lora import full_tensor, lora_layers
from vla_train.policy.simplevla_oft.published_names import Piece, published_pieces

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
BASE_KEY = "base_model_name_or_path"
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")
_NOT_PLAIN_LORA = (
    *("use_rslora", "use_dora", "use_qalora", "lora_bias", "modules_to_save", "layer_replication"),
    *("target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
)
_STARTS_THAT_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights. Others (pissa, olora, ...) also change the weights under the adapters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What is added to one layer: scaling x B A."""

    lora_a: Tensor
    """(r, in)."""
    lora_b: Tensor
    """(out, r)."""
    scaling: float

    def update(self, device: torch.device) -> Tensor:
        """(out, in) float32, made on `device`."""
        return self.scaling * (self.lora_b.to(device, torch.float32) @ self.lora_a.to(device, torch.float32))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFiles:
    """Adapters in a folder, not read yet."""

    folder: Path
    base: str
    """The checkpoint that they were trained on: `demo`, a folder or a hub id."""
    rank: int
    alpha: float
    rank_pattern: dict[str, Any]
    """Ranks of layers that have another one, by regular expressions."""
    alpha_pattern: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / ADAPTER_WEIGHTS_FILE

    def read(self) -> dict[str, Adapter]:
        """All adapters, by published layer.

        Raises:
            ValueError: The file is damaged, or holds something else, one of A and B alone, shapes that do not fit, or numbers
                that are not finite.
        """
        factors: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(self.file, framework="pt", device="cpu") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    match = _KEY.fullmatch(key)
                    if match is None:
                        raise ValueError(f"{self.file} holds {key}, which is no factor of a LoRA adapter")
                    tensor = file.get_tensor(key)
                    if not tensor.isfinite().all():
                        raise ValueError(f"{self.file}: {key} holds values that are not finite")
                    factors.setdefault(match["layer"], {})[match["factor"]] = tensor
        except SafetensorError as error:
            raise ValueError(f"{self.file} is damaged or no safetensors file (a pickle is never read): {error}") from None
        if not factors:
            raise ValueError(f"{self.file} holds no adapters")
        return {layer: self._adapter(layer, found) for layer, found in factors.items()}

    def _adapter(self, layer: str, factors: Mapping[str, Tensor]) -> Adapter:
        for factor in "AB":
            if factor not in factors:
                raise ValueError(f"{self.file} lacks {layer}.lora_{factor}")
        a, b = factors["A"], factors["B"]
        rank = _by_pattern(self.rank_pattern, layer, self.rank)
        if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == rank:
            raise ValueError(
                f"{self.file}: lora_A and lora_B of {layer} have shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                f"{ADAPTER_CONFIG_FILE} gives them rank {rank}"
            )
        return Adapter(lora_a=a, lora_b=b, scaling=_by_pattern(self.alpha_pattern, layer, self.alpha) / rank)


def _by_pattern(pattern: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    """As peft reads it: the first key that matches the layer's name or its end."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), otherwise)


def open_adapters(folder: Path) -> AdapterFiles | None:
    """The adapters in a folder; None where it holds none. Their weights are not read.

    Raises:
        ValueError: They are of another kind than plain LoRA, or a file is missing, damaged or a pickle.
    """
    file = folder / ADAPTER_CONFIG_FILE
    if not file.exists():
        return None
    data = read_json(file)
    if data.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {data.get('peft_type')!r}, only LORA is read")
    for key in _NOT_PLAIN_LORA:
        if data.get(key):
            raise ValueError(f"{file}: {key} is {data[key]!r}, which is not read: plain LoRA has none")
    if data.get("bias") not in (None, "none"):
        raise ValueError(f"{file}: bias is {data['bias']!r}, only none is read")
    start = data.get("init_lora_weights")
    if start not in _STARTS_THAT_KEEP_THE_BASE:
        raise ValueError(f"{file}: init_lora_weights {start!r} changes the weights under the adapters, which is not read")
    base = data.get(BASE_KEY)
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file}: {BASE_KEY} must name the checkpoint under the adapters, got {base!r}")
    ranks, alphas = (_pattern(file, data, key) for key in ("rank_pattern", "alpha_pattern"))
    for key, value in [("r", data.get("r")), *ranks.items()]:
        if type(value) is not int or value < 1:
            raise ValueError(f"{file}: the rank {key} must be a whole number, at least 1, got {value!r}")
    for key, value in [("lora_alpha", data.get("lora_alpha")), *alphas.items()]:
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ValueError(f"{file}: {key} must be a positive number, got {value!r}")
    if not (folder / ADAPTER_WEIGHTS_FILE).exists():
        pickled = f"only {_PICKLE}, a pickle, which can run code and is not read" if (folder / _PICKLE).exists() else "none"
        raise ValueError(f"{folder / ADAPTER_WEIGHTS_FILE} is missing, there is {pickled}")
    return AdapterFiles(
        folder=folder, base=base, rank=data["r"], alpha=data["lora_alpha"], rank_pattern=ranks, alpha_pattern=alphas
    )


def _pattern(file: Path, data: Mapping[str, Any], key: str) -> dict[str, Any]:
    pattern = data.get(key) or {}
    try:
        for regex, _ in pattern.items():
            re.compile(regex)
    except (AttributeError, TypeError, re.error):
        raise ValueError(f"{file}: {key} must give numbers by regular expressions, got {pattern!r}") from None
    return pattern


def require_fit(adapters: Mapping[str, Adapter], model: nn.Module, *, where: Path) -> None:
    """Refuse adapters that are not of this model's linear layers. The model is plain; `where` is the adapters' file.

    Raises:
        ValueError: The message names the layer.
    """
    parameters = dict(model.named_parameters())
    pieces = published_pieces(parameters)
    for layer, adapter in adapters.items():
        piece = pieces.get(f"{layer}.weight")
        if piece is None or not isinstance(model.get_submodule(_layer_of(piece)), nn.Linear):
            raise ValueError(f"{where} holds an adapter of {layer}, which is no linear layer of this model")
        out_features, in_features = piece.of(parameters[piece.parameter]).shape
        if (len(adapter.lora_b), adapter.lora_a.shape[1]) != (out_features, in_features):
            raise ValueError(
                f"{where}: lora_A and lora_B of {layer} have shapes {tuple(adapter.lora_a.shape)} and "
                f"{tuple(adapter.lora_b.shape)}, the layer maps {in_features} inputs to {out_features}"
            )


def fuse(adapters: Mapping[str, Adapter], model: nn.Module) -> dict[str, Adapter]:
    """The same updates as adapters of the layers of `model`, a plain one that they fit, by its names."""
    pieces = published_pieces(dict(model.named_parameters()))
    parts: dict[str, list[tuple[Piece, Adapter]]] = {}
    for layer, adapter in adapters.items():
        piece = pieces[f"{layer}.weight"]
        parts.setdefault(_layer_of(piece), []).append((piece, adapter))
    return {layer: _stack(found, len(model.get_parameter(f"{layer}.weight"))) for layer, found in parts.items()}


def _stack(parts: list[tuple[Piece, Adapter]], out_features: int) -> Adapter:
    distinct: list[Tensor] = []
    which = []
    for _, adapter in parts:
        known = [index for index, a in enumerate(distinct) if torch.equal(a, adapter.lora_a.float())]
        which.append(known[0] if known else len(distinct))
        if not known:
            distinct.append(adapter.lora_a.float())
    lora_a, scaling = torch.cat(distinct), parts[0][1].scaling
    lora_b = torch.zeros(out_features, len(lora_a))
    for index, (piece, adapter) in zip(which, parts, strict=True):
        first = sum(map(len, distinct[:index]))
        rows = piece.of(lora_b)
        rows[:, first : first + len(distinct[index])] = adapter.lora_b.float() * (adapter.scaling / scaling)
    return Adapter(lora_a=lora_a, lora_b=lora_b, scaling=scaling)


def _layer_of(piece: Piece) -> str:
    return piece.parameter.removesuffix(".weight")


def published_adapters(model: nn.Module) -> dict[str, Adapter]:
    """All adapters of a model, by published layer, on the host. With sharded weights all ranks must call this."""
    adapters = {}
    for name, layer in lora_layers(model).items():
        a, b = full_tensor(layer.lora_A).cpu(), full_tensor(layer.lora_B).cpu()
        for key, piece in published_pieces([f"{name}.weight"]).items():
            adapters[key.removesuffix(".weight")] = Adapter(lora_a=a, lora_b=piece.of(b), scaling=layer.scaling)
    return adapters


def num_published_values(model: nn.Module) -> int:
    """How many numbers the adapters of a model have as published."""
    return sum(
        len(published_pieces([f"{name}.weight"])) * layer.lora_A.numel() + layer.lora_B.numel()
        for name, layer in lora_layers(model).items()
    )


def peft_tensors(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The content of the weights' file."""
    tensors = {}
    for layer, adapter in adapters.items():
        for factor, tensor in (("A", adapter.lora_a), ("B", adapter.lora_b)):
            tensors[f"base_model.model.{layer}.lora_{factor}.weight"] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors


def peft_config(adapters: Mapping[str, Adapter], *, base: str) -> dict[str, Any]:
    """The content of `adapter_config.json`. Ranks and alphas other than those of the smallest adapter are given by layer."""
    smallest = min(adapters.values(), key=lambda adapter: len(adapter.lora_a))
    rank, alpha = len(smallest.lora_a), _alpha(smallest)
    return {
        "peft_type": "LORA",
        BASE_KEY: base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: len(a.lora_a) for name, a in adapters.items() if len(a.lora_a) != rank},
        "alpha_pattern": {name: _alpha(a) for name, a in adapters.items() if _alpha(a) != alpha},
        "target_modules": list(adapters),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _alpha(adapter: Adapter) -> int | float:
    """What divided by the rank is the scaling, a whole number where one is."""
    rank = len(adapter.lora_a)
    alpha = adapter.scaling * rank
    return round(alpha) if round(alpha) / rank == adapter.scaling else alpha
