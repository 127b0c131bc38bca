"""Shape of a SimpleVLA-OFT: towers, projector, language model, token layout; and the sizes that have a name.

Importing this needs no torch. `config_json.py` reads it from a checkpoint and writes it to one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Gripper = Literal["libero"] | None
ImagePath = Literal["openvla", "rlinf"]
"""How frames become the model's input; see `images.py`."""


def _require_positive(owner: str, config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {getattr(config, name)}")


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
        _require_positive(f"vision tower {self.name}", self, "width", "depth", "num_heads", "mlp_width", "patch_size")
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
        _require_positive("text_config", self, "hidden_size", "intermediate_size", "num_layers", "num_heads")
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
    jpeg: bool | None = None
    """Whether frames take a JPEG round trip first. None: published checkpoints do not say."""
    images: ImagePath | None = None
    """How frames become the model's input. None: published checkpoints do not say."""
    norm_stats: Mapping[str, Any] = field(default_factory=dict)
    """Action statistics by dataset, as `dataset_statistics.json` has them."""
    unnorm_key: str | None = None
    """The dataset whose statistics the checkpoint names for playing it. None: it names none."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """The `config.json` this was read from: keys that we do not use are written back as they were."""

    def __post_init__(self) -> None:
        _require_positive("config.json", self, "image_size", "chunk_size", "action_dim", "num_spare_tokens")
        for tower in self.towers:
            if self.image_size % tower.patch_size:
                raise ValueError(f"image size {self.image_size} is not a multiple of {tower.name}'s patch {tower.patch_size}")
        if len({tower.patch_size for tower in self.towers}) > 1:
            raise ValueError(f"the towers' patch sizes differ: {[tower.patch_size for tower in self.towers]}")
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
