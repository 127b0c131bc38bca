"""Shape of a SimpleVLA-OFT: towers, projector, language model, token layout. Read from and written to `config.json`.

The layout is that of the published OpenVLA-OFT checkpoints, which name their towers by timm id alone and leave out what all
of them share. Keys of our own, absent there: `vision_towers` (sizes of towers that are not the published ones), and
`chunk_size`, `action_dim`, `prompt_end_token_id`, `gripper`.

Importing this needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Gripper = Literal["libero"] | None


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One vision transformer (pre-norm, exact GELU, LayerNorm eps 1e-6, biases everywhere)."""

    name: str
    """timm id, or a name of our own that `vision_towers` explains."""
    width: int
    depth: int
    """Blocks in the checkpoint; the feature is the output of the second-to-last."""
    num_heads: int
    mlp_width: int
    patch_size: int
    """Pixels."""
    class_token: bool
    """DINOv2 has one; towers without it (SigLIP) end in an attention pool, which is stored but unused."""
    num_registers: int
    layer_scale: bool

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"vision tower {self.name}: width {self.width} is not a multiple of {self.num_heads} heads")
        if self.depth < 2:
            raise ValueError(f"vision tower {self.name}: depth must be at least 2, got {self.depth}")

    @property
    def num_prefix_tokens(self) -> int:
        """CLS and registers: before the patches, dropped from the feature."""
        return int(self.class_token) + self.num_registers


PUBLISHED_TOWERS = {
    tower.name: tower
    for tower in (
        TowerConfig(
            name="vit_large_patch14_reg4_dinov2.lvd142m",
            width=1024,
            depth=24,
            num_heads=16,
            mlp_width=4096,
            patch_size=14,
            class_token=True,
            num_registers=4,
            layer_scale=True,
        ),
        TowerConfig(
            name="vit_so400m_patch14_siglip_224",
            width=1152,
            depth=27,
            num_heads=16,
            mlp_width=4304,
            patch_size=14,
            class_token=False,
            num_registers=0,
            layer_scale=False,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A Llama. The defaults are Llama-2 7B as transformers' `LlamaConfig` fills them in."""

    vocab_size: int = 32064
    """Rows of the embedding: the tokenizer's, then `pad_to_multiple_of` spare ones."""
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"text_config: hidden_size {self.hidden_size} over {self.num_heads} heads does not give an even head dimension"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class SimpleVLAOFTConfig:
    """Everything that decides what a SimpleVLA-OFT computes from pixels and prompt ids."""

    towers: tuple[TowerConfig, TowerConfig]
    """DINOv2 on channels 0-2, SigLIP on channels 3-5."""
    image_size: int
    """Side of the square input in pixels."""
    language: LanguageConfig
    chunk_size: int = 8
    """K: actions per decision."""
    action_dim: int = 7
    """A."""
    num_bins: int = 256
    """Action tokens: the last ids before the spare ones, in descending order of the value."""
    num_spare_tokens: int = 64
    """`pad_to_multiple_of`: rows at the end of the vocabulary that the tokenizer does not use; the first pads."""
    bos_token_id: int = 1
    placeholder_token_id: int = 1
    """Id in the action positions (its embedding is zeroed)."""
    stop_token_id: int = 2
    prompt_end_token_id: int = 29871
    """Appended to prompts that do not end in it."""
    gripper: Gripper | Literal["unknown"] = "unknown"
    """"libero": the last action dimension is stored as 0 close .. 1 open and played as LIBERO's +1 close, -1 open; None: played
    as decoded. Published checkpoints do not say."""
    norm_stats: Mapping[str, Any] = field(default_factory=dict)
    """Action statistics by dataset, as `dataset_statistics.json` has them."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """The `config.json` this was read from: keys that we do not use are written back as they were."""

    def __post_init__(self) -> None:
        for tower in self.towers:
            if self.image_size % tower.patch_size:
                raise ValueError(f"image size {self.image_size} is not a multiple of {tower.name}'s patch {tower.patch_size}")
        if len({tower.patch_size for tower in self.towers}) > 1:
            raise ValueError(f"the towers' patch sizes differ: {[tower.patch_size for tower in self.towers]}")
        for name in ("chunk_size", "action_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_bins < 2 or self.first_action_id <= max(self.bos_token_id, self.stop_token_id):
            raise ValueError(
                f"vocab_size {self.language.vocab_size} ({self.num_spare_tokens} spare) has no room for {self.num_bins} bins"
            )
        if not 0 <= self.prompt_end_token_id < self.pad_token_id:
            raise ValueError(f"prompt_end_token_id {self.prompt_end_token_id} is outside the vocabulary of {self.pad_token_id}")

    @property
    def num_patches(self) -> int:
        """P."""
        return (self.image_size // self.towers[0].patch_size) ** 2

    @property
    def num_action_tokens(self) -> int:
        """T = K * A."""
        return self.chunk_size * self.action_dim

    @property
    def pad_token_id(self) -> int:
        """The first spare id; also the size of the vocabulary that the bins count back from."""
        return self.language.vocab_size - self.num_spare_tokens

    @property
    def first_action_id(self) -> int:
        """Smallest id of an action token (the largest value)."""
        return self.pad_token_id - self.num_bins


def config_from_json(data: Mapping[str, Any]) -> SimpleVLAOFTConfig:
    """Read a `config.json` in the published layout.

    Raises:
        ValueError: It describes another model, or one that this class does not compute; the message names the key.
    """
    if not data.get("use_fused_vision_backbone", True):
        raise ValueError(
            "config.json: use_fused_vision_backbone is false; only the fused DINOv2 + SigLIP backbone is supported"
        )
    names = _required(data, "timm_model_ids")
    sizes = _required(data, "image_sizes")
    if len(names) != 2 or len(set(sizes)) != 1:
        raise ValueError(f"config.json: expected two towers of one image size, got timm_model_ids {names}, image_sizes {sizes}")
    own_towers = data.get("vision_towers", {})
    optional: dict[str, Any] = {
        name: data[name] for name in ("chunk_size", "action_dim", "prompt_end_token_id", "gripper") if name in data
    }
    text = _required(data, "text_config")
    for ours, theirs in (("bos_token_id", "bos_token_id"), ("stop_token_id", "eos_token_id")):
        if text.get(theirs) is not None:
            optional[ours] = text[theirs]
    if optional.get("gripper") not in (None, "libero", "unknown"):
        raise ValueError(f'config.json: gripper must be "libero" or null, got {optional["gripper"]!r}')
    config = SimpleVLAOFTConfig(
        towers=(_tower(names[0], own_towers), _tower(names[1], own_towers)),
        image_size=sizes[0],
        language=_language(text),
        num_bins=_required(data, "n_action_bins"),
        num_spare_tokens=_required(data, "pad_to_multiple_of"),
        norm_stats=data.get("norm_stats") or {},
        published=dict(data),
        **optional,
    )
    if data.get("pad_token_id", config.pad_token_id) != config.pad_token_id:
        raise ValueError(
            f"config.json: pad_token_id {data['pad_token_id']} is not vocab_size - pad_to_multiple_of = {config.pad_token_id}"
        )
    return config


def config_to_json(config: SimpleVLAOFTConfig) -> dict[str, Any]:
    """`config.json` in the published layout; `config_from_json` gives the config back."""
    language = config.language
    data: dict[str, Any] = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "output_projector_states": False,
        "timm_override_act_layers": [None, None],
        "image_resize_strategy": "resize-naive",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "llm_max_length": 2048,
        **config.published,
        "use_fused_vision_backbone": True,
        "timm_model_ids": [tower.name for tower in config.towers],
        "image_sizes": [config.image_size, config.image_size],
        "n_action_bins": config.num_bins,
        "pad_to_multiple_of": config.num_spare_tokens,
        "pad_token_id": config.pad_token_id,
        "chunk_size": config.chunk_size,
        "action_dim": config.action_dim,
        "prompt_end_token_id": config.prompt_end_token_id,
        "norm_stats": dict(config.norm_stats),
    }
    if config.gripper != "unknown":
        data["gripper"] = config.gripper
    data["text_config"] = {
        "model_type": "llama",
        **config.published.get("text_config", {}),
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_heads,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_theta": language.rope_theta,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.stop_token_id,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": False,
    }
    towers = {tower.name: _tower_to_json(tower) for tower in config.towers if tower != PUBLISHED_TOWERS.get(tower.name)}
    if towers:
        data["vision_towers"] = {**towers, **config.published.get("vision_towers", {})}
    return data


def named_config(
    size: str, *, num_text_tokens: int, prompt_end_token_id: int, chunk_size: int, action_dim: int
) -> SimpleVLAOFTConfig:
    """A named size, its vocabulary large enough for a given tokenizer and the action tokens.

    Args:
        size: "tiny" (milliseconds per row on one CPU core), "small", or "openvla-7b" (the published shape).
        num_text_tokens: Ids of the tokenizer.
        prompt_end_token_id: See `SimpleVLAOFTConfig`.
        chunk_size: K.
        action_dim: A.
    """
    if size not in _SIZES:
        raise ValueError(f"unknown model size {size!r}; there are {', '.join(_SIZES)}")
    towers, image_size, language = _SIZES[size]
    num_ids = max(num_text_tokens + SimpleVLAOFTConfig.num_bins, language.vocab_size - SimpleVLAOFTConfig.num_spare_tokens)
    return SimpleVLAOFTConfig(
        towers=towers,
        image_size=image_size,
        language=replace(language, vocab_size=num_ids + SimpleVLAOFTConfig.num_spare_tokens),
        chunk_size=chunk_size,
        action_dim=action_dim,
        prompt_end_token_id=prompt_end_token_id,
    )


def _own_towers(size: str, *, width: int, depth: int, num_heads: int) -> tuple[TowerConfig, TowerConfig]:
    dinov2 = TowerConfig(
        name=f"{size}_dinov2_reg4",
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=4 * width,
        patch_size=14,
        class_token=True,
        num_registers=4,
        layer_scale=True,
    )
    return dinov2, replace(dinov2, name=f"{size}_siglip", class_token=False, num_registers=0, layer_scale=False)


_SIZES: dict[str, tuple[tuple[TowerConfig, TowerConfig], int, LanguageConfig]] = {
    "tiny": (
        _own_towers("tiny", width=128, depth=4, num_heads=2),
        84,
        LanguageConfig(vocab_size=0, hidden_size=192, intermediate_size=512, num_layers=4, num_heads=3),
    ),
    "small": (
        _own_towers("small", width=192, depth=6, num_heads=3),
        112,
        LanguageConfig(vocab_size=0, hidden_size=320, intermediate_size=896, num_layers=6, num_heads=5),
    ),
    "openvla-7b": (
        (PUBLISHED_TOWERS["vit_large_patch14_reg4_dinov2.lvd142m"], PUBLISHED_TOWERS["vit_so400m_patch14_siglip_224"]),
        224,
        LanguageConfig(),
    ),
}
"""Towers, image side in pixels, language model."""


def _required(data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        raise ValueError(f"config.json has no {key!r}: it does not describe an OpenVLA-OFT checkpoint")
    return data[key]


def _tower(name: str, own: Mapping[str, Mapping[str, Any]]) -> TowerConfig:
    if name not in own:
        if name not in PUBLISHED_TOWERS:
            raise ValueError(
                f"config.json: unknown vision tower {name!r} in timm_model_ids; known are {', '.join(PUBLISHED_TOWERS)}, "
                "others need their sizes under vision_towers"
            )
        return PUBLISHED_TOWERS[name]
    sizes = own[name]
    try:
        return TowerConfig(
            name=name,
            width=sizes["embed_dim"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            mlp_width=int(sizes["embed_dim"] * sizes["mlp_ratio"]),
            patch_size=sizes["patch_size"],
            class_token=sizes.get("class_token", True),
            num_registers=sizes["reg_tokens"],
            layer_scale=sizes["layer_scale"],
        )
    except KeyError as error:
        raise ValueError(f"config.json: vision_towers.{name} has no {error.args[0]!r}") from None


def _tower_to_json(tower: TowerConfig) -> dict[str, Any]:
    return {
        "embed_dim": tower.width,
        "depth": tower.depth,
        "num_heads": tower.num_heads,
        "mlp_ratio": tower.mlp_width / tower.width,
        "patch_size": tower.patch_size,
        "class_token": tower.class_token,
        "reg_tokens": tower.num_registers,
        "layer_scale": tower.layer_scale,
    }


def _language(text: Mapping[str, Any]) -> LanguageConfig:
    fixed = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_scaling": None,
    }
    for key, value in fixed.items():
        if text.get(key, value) != value:
            raise ValueError(f"config.json: text_config.{key} is {text[key]!r}, only {value!r} is supported")
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "rms_norm_eps": "rms_norm_eps",
        "rope_theta": "rope_theta",
    }
    language = LanguageConfig(**{ours: text[theirs] for theirs, ours in names.items() if text.get(theirs) is not None})
    if text.get("num_key_value_heads") not in (None, language.num_heads):
        raise ValueError(
            f"config.json: text_config.num_key_value_heads is {text['num_key_value_heads']}, only {language.num_heads} "
            "(as many as attention heads) is supported"
        )
    return language
