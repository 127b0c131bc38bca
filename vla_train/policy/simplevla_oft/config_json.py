"""`config.json`: a `SimpleVLAOFTConfig` in the layout of the published OpenVLA-OFT checkpoints.

They name their towers by timm id alone and leave out what all of them share. Keys of our own, absent there: `vision_towers`
(sizes of towers that are not the published ones), and `chunk_size`, `action_dim`, `prompt_end_token_id`, `gripper`,
`jpeg`, `images`. Keys that we do not use are kept and written back, so that the published code finds what it wrote.
"""

from collections.abc import Mapping
from typing import Any, get_args

from vla_train.policy.simplevla_oft.config import PUBLISHED_TOWERS, ImagePath, LanguageConfig, SimpleVLAOFTConfig, TowerConfig

_KINDS: dict[type, tuple[str, type | tuple[type, ...]]] = {
    int: ("a whole number", int),
    float: ("a number", (int, float)),
    bool: ("true or false", bool),
    str: ("text", str),
    list: ("a list", list),
    dict: ("an object", dict),
}
_LANGUAGE_KEYS: dict[str, tuple[str, type]] = {
    "vocab_size": ("vocab_size", int),
    "hidden_size": ("hidden_size", int),
    "intermediate_size": ("intermediate_size", int),
    "num_hidden_layers": ("num_layers", int),
    "num_attention_heads": ("num_heads", int),
    "rms_norm_eps": ("rms_norm_eps", float),
    "rope_theta": ("rope_theta", float),
}
"""Keys of `text_config`, our names for them, and what they hold."""


def config_from_json(data: Mapping[str, Any]) -> SimpleVLAOFTConfig:
    """Read a `config.json` in the published layout.

    Raises:
        ValueError: It describes another model, or one that this class does not compute; the message names the key.
    """
    if data.get("use_fused_vision_backbone") is False:
        raise ValueError(
            "config.json: use_fused_vision_backbone is false; only the fused DINOv2 + SigLIP backbone is supported"
        )
    names = _required(data, "timm_model_ids", list)
    sizes = _required(data, "image_sizes", list)
    for path, values, kind in (("timm_model_ids", names, str), ("image_sizes", sizes, int)):
        for value in values:
            _checked(f"every one of {path}", value, kind)
    if len(names) != 2 or len(set(sizes)) != 1:
        raise ValueError(f"config.json: expected two towers of one image size, got timm_model_ids {names}, image_sizes {sizes}")
    own_towers = _required(data, "vision_towers", dict) if "vision_towers" in data else {}
    optional: dict[str, Any] = {
        name: _required(data, name, int) for name in ("chunk_size", "action_dim", "prompt_end_token_id") if name in data
    }
    if "gripper" in data:
        optional["gripper"] = data["gripper"]
    if "jpeg" in data:
        optional["jpeg"] = _required(data, "jpeg", bool)
    if data.get("images") is not None:
        optional["images"] = data["images"]
        if optional["images"] not in get_args(ImagePath):
            raise ValueError(f"config.json: images must be one of {', '.join(get_args(ImagePath))}, got {data['images']!r}")
    if data.get("unnorm_key") is not None:
        optional["unnorm_key"] = _required(data, "unnorm_key", str)
    text = _required(data, "text_config", dict)
    for ours, theirs in (("bos_token_id", "bos_token_id"), ("stop_token_id", "eos_token_id")):
        if text.get(theirs) is not None:
            optional[ours] = _required(text, theirs, int, where="text_config")
    if optional.get("gripper") not in (None, "libero", "unknown"):
        raise ValueError(f'config.json: gripper must be "libero" or null, got {optional["gripper"]!r}')
    config = SimpleVLAOFTConfig(
        towers=(_tower(names[0], own_towers), _tower(names[1], own_towers)),
        image_size=sizes[0],
        language=_language(text),
        num_bins=_required(data, "n_action_bins", int),
        num_spare_tokens=_required(data, "pad_to_multiple_of", int),
        norm_stats=_checked("norm_stats", data.get("norm_stats") or {}, dict),
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
    if config.jpeg is not None:
        data["jpeg"] = config.jpeg
    if config.images is not None:
        data["images"] = config.images
    if config.unnorm_key is not None:
        data["unnorm_key"] = config.unnorm_key
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


def _required(data: Mapping[str, Any], key: str, kind: type, *, where: str = "") -> Any:
    """A key's value, of the right kind; the error says where it is missing or wrong."""
    path = f"{where}.{key}" if where else key
    if key not in data:
        raise ValueError(f"config.json has no {path!r}: it does not describe an OpenVLA-OFT checkpoint")
    return _checked(path, data[key], kind)


def _checked(path: str, value: Any, kind: type) -> Any:
    expected, accepted = _KINDS[kind]
    if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, bool)):
        raise ValueError(f"config.json: {path} must be {expected}, got {value!r}")
    return value


def _tower(name: str, own: Mapping[str, Any]) -> TowerConfig:
    if name not in own:
        if name not in PUBLISHED_TOWERS:
            raise ValueError(
                f"config.json: unknown vision tower {name!r} in timm_model_ids; known are {', '.join(PUBLISHED_TOWERS)}, "
                "others need their sizes under vision_towers"
            )
        return PUBLISHED_TOWERS[name]
    where = f"vision_towers.{name}"
    sizes = _required(own, name, dict, where="vision_towers")
    width = _required(sizes, "embed_dim", int, where=where)
    return TowerConfig(
        name=name,
        width=width,
        depth=_required(sizes, "depth", int, where=where),
        num_heads=_required(sizes, "num_heads", int, where=where),
        mlp_width=int(width * _required(sizes, "mlp_ratio", float, where=where) + 1e-6),
        patch_size=_required(sizes, "patch_size", int, where=where),
        class_token=sizes.get("class_token", True),
        num_registers=_required(sizes, "reg_tokens", int, where=where),
        layer_scale=_required(sizes, "layer_scale", bool, where=where),
    )


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
    given: dict[str, Any] = {
        ours: _required(text, theirs, kind, where="text_config")
        for theirs, (ours, kind) in _LANGUAGE_KEYS.items()
        if text.get(theirs) is not None
    }
    rope = text.get("rope_parameters") or {}  # where transformers 5 writes it
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"config.json: text_config.rope_parameters.rope_type is {rope['rope_type']!r}, only 'default' is supported"
        )
    if "rope_theta" in rope:
        given["rope_theta"] = _required(rope, "rope_theta", float, where="text_config.rope_parameters")
    language = LanguageConfig(**given)
    for key, value in (("num_key_value_heads", language.num_heads), ("head_dim", language.head_dim)):
        if text.get(key) not in (None, value):
            raise ValueError(f"config.json: text_config.{key} is {text[key]!r}, only {value} is supported with these sizes")
    return language
