"""Folders as others publish or save them: their files, keys and metadata, with the golden checkpoint's small tensors.

A function for each; all are built from the first, as theirs were.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_train.policy.simplevla_oft.small_tokenizer import small_tokenizer

LAYER = "language_model.model.layers.1.self_attn.o_proj"
"""What the adapters of these folders are of."""
REMOTE_CODE = ("configuration_prismatic.py", "modeling_prismatic.py", "processing_prismatic.py")
INDEX = "model.safetensors.index.json"
_GOLDEN = Path(__file__).parent / "golden"
_OXE = ("bridge_orig", "fractal20220817_data", "kuka", "taco_play", *(f"oxe_dataset_{number}" for number in range(21)))
"""The 25 datasets of openvla-7b, whose statistics stay in the config.json of what is trained from it."""


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def write(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data))


def golden_tensors() -> dict[str, Tensor]:
    return load_file(_GOLDEN / "model.safetensors")


def golden_statistics() -> dict[str, Any]:
    """One entry of `dataset_statistics.json`, of LIBERO's actions."""
    (entry,) = read(_GOLDEN / "dataset_statistics.json").values()
    return entry


def write_shards(folder: Path, tensors: dict[str, Tensor], count: int = 2) -> None:
    keys = sorted(tensors)
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        shard = keys[number::count]
        save_file({key: tensors[key] for key in shard}, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    write(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})


def openvla_7b(folder: Path) -> Path:
    """The base: statistics of 25 datasets in config.json, none of LIBERO."""
    folder.mkdir(parents=True)
    config = read(_GOLDEN / "config.json")
    write(folder / "config.json", config | {"norm_stats": dict.fromkeys(_OXE, golden_statistics()), "torch_dtype": "bfloat16"})
    write_shards(folder, {key: tensor.bfloat16() for key, tensor in golden_tensors().items()})
    (folder / "tokenizer.json").write_text(small_tokenizer().to_str())
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    write(folder / "added_tokens.json", {"<PAD>": 32000})
    write(folder / "generation_config.json", {"pad_token_id": 32000})
    write(folder / "preprocessor_config.json", {"image_processor_type": "PrismaticImageProcessor"})
    for name in REMOTE_CODE:
        (folder / name).write_text(f"# {name}")
    return folder


def simplevla_sft(folder: Path, *, dataset: str = "libero_spatial_no_noops") -> Path:
    """Haozhan72's SFT releases: the base's layout, LIBERO's statistics in a file of their own."""
    openvla_7b(folder)
    write(folder / "dataset_statistics.json", {dataset: golden_statistics()})
    return folder


def simplevla_rl(folder: Path) -> Path:
    """Haozhan72's RL releases: one lacks two files of the published code."""
    simplevla_sft(folder)
    for name in REMOTE_CODE[:2]:
        (folder / name).unlink()
    return folder


def simplevla_full_save(folder: Path) -> Path:
    """What SimpleVLA-RL's trainer writes: float32, the tokenizer; no statistics of LIBERO, no image settings, no code."""
    openvla_7b(folder)
    write(folder / "config.json", read(folder / "config.json") | {"torch_dtype": "float32"})
    write_shards(folder, {key: tensor.float() for key, tensor in golden_tensors().items()})
    for name in ("preprocessor_config.json", *REMOTE_CODE):
        (folder / name).unlink()
    return folder


def adapter_factors() -> tuple[Tensor, Tensor]:
    """A (2, in) and B (out, 2) of the adapters in `lora_adapter/`; their scaling is 2."""
    generator = torch.Generator().manual_seed(0)
    out_features, in_features = golden_tensors()[f"{LAYER}.weight"].shape
    return torch.randn(2, in_features, generator=generator), torch.randn(out_features, 2, generator=generator)


def add_lora_adapter(folder: Path, *, record: str | None) -> None:
    """`lora_adapter/` in a folder, made on the checkpoint that `record` names."""
    a, b = adapter_factors()
    nested = folder / "lora_adapter"
    nested.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": record, "target_modules": "all-linear"}
    write(nested / "adapter_config.json", config)
    tensors = {f"base_model.model.{LAYER}.lora_A.weight": a, f"base_model.model.{LAYER}.lora_B.weight": b}
    save_file(tensors, nested / "adapter_model.safetensors")


def simplevla_lora_save(folder: Path) -> Path:
    """What SimpleVLA-RL's trainer writes with LoRA: merged weights, the adapters beside them; no tokenizer, no statistics."""
    simplevla_full_save(folder)
    add_lora_adapter(folder, record="Haozhan72/Openvla-oft-SFT-libero10-traj1")
    a, b = adapter_factors()
    tensors = {key: tensor.bfloat16() for key, tensor in golden_tensors().items()}
    tensors[f"{LAYER}.weight"] = (tensors[f"{LAYER}.weight"].float() + 2 * b @ a).bfloat16()
    write_shards(folder, tensors)
    for name in ("tokenizer.json", "tokenizer.model", "added_tokens.json"):
        (folder / name).unlink()
    return folder


def rlinf_grpo(folder: Path) -> Path:
    """RLinf's GRPO releases: a value head among the weights, statistics of all suites in one."""
    simplevla_sft(folder, dataset="libero_130_no_noops_trajall")
    head = {
        "value_head.mlp.0.weight": torch.ones(8, 32),
        "value_head.mlp.0.bias": torch.ones(8),
        "value_head.mlp.2.weight": torch.ones(4, 8),
        "value_head.mlp.2.bias": torch.ones(4),
        "value_head.mlp.4.weight": torch.ones(1, 4),
    }
    write_shards(folder, {key: tensor.bfloat16() for key, tensor in golden_tensors().items()} | head)
    return folder


def rlinf_base_lora(folder: Path, *, record: str | None) -> Path:
    """RLinf's base-LoRA folders: whole weights and `lora_adapter/` side by side."""
    simplevla_sft(folder, dataset="libero_130_no_noops_trajall")
    add_lora_adapter(folder, record=record)
    return folder


def rlinf_trainer_save(folder: Path) -> Path:
    """`global_step_N` of RLinf's trainer: pickled weights, and PyTorch's distributed checkpoint."""
    for name in ("model_state_dict/full_weights.pt", "dcp_checkpoint/__0_0.distcp", "dcp_checkpoint/.metadata"):
        (folder / "actor" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "actor" / name).write_bytes(b"a pickle")
    return folder


def openvla_oft_continuous(folder: Path) -> Path:
    """moojink's releases: heads in pickles, adapters merged."""
    simplevla_sft(folder)
    for part in ("action_head", "proprio_projector"):
        (folder / f"{part}--150000_checkpoint.pt").write_bytes(b"a pickle")
    add_lora_adapter(folder, record="openvla/openvla-7b")
    return folder
