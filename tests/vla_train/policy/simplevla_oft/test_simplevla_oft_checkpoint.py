"""Round trips of checkpoints, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_train.policy.simplevla_oft import SimpleVLAOFT, checkpoint_saving
from vla_train.policy.simplevla_oft.lora import add_lora

_WEIGHT = "language_model.model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def folder(golden_folder: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "dataset_statistics.json", "model.safetensors"):
        shutil.copy(golden_folder / name, tmp_path / name)
    return tmp_path


def _edit_weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def _edit_config(folder: Path, edit) -> None:
    data = json.loads((folder / "config.json").read_text())
    edit(data)
    (folder / "config.json").write_text(json.dumps(data))


def test_weights_take_the_dtype_that_was_asked_for(golden_folder):
    model = SimpleVLAOFT.from_pretrained(golden_folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_fused_projections_hold_the_published_tensors_in_order(golden_folder, golden_model):
    stored = load_file(golden_folder / "model.safetensors")
    prefix = "language_model.model.layers.2"
    qkv = torch.cat([stored[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkv"])
    gate_up = torch.cat([stored[f"{prefix}.mlp.{name}_proj.weight"] for name in ("gate", "up")])
    layer = golden_model.language_model.model.layers[2]
    assert torch.equal(layer.self_attn.qkv_proj.weight, qkv.float())
    assert torch.equal(layer.mlp.gate_up_proj.weight, gate_up.float())


def test_a_large_checkpoint_is_cut_into_shards_with_an_index_and_loads_again(golden_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_saving, "_SHARD_BYTES", 1_000_000)
    golden_model.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files == sorted(set(index["weight_map"].values()))
    assert all(name.endswith(f"-of-{len(files):05d}.safetensors") for name in files)
    assert all(key in load_file(tmp_path / name) for key, name in index["weight_map"].items())
    again = SimpleVLAOFT.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(golden_model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("sizes", [(1_000_000, 10**12), (10**12, 1_000_000), (400_000, 1_000_000)])
def test_a_checkpoint_saved_over_one_cut_otherwise_is_the_one_that_loads(sizes, golden_folder, tmp_path, monkeypatch):
    model = SimpleVLAOFT.from_pretrained(golden_folder, dtype=torch.float32)
    for size in sizes:
        monkeypatch.setattr(checkpoint_saving, "_SHARD_BYTES", size)
        with torch.no_grad():
            model.language_model.lm_head.weight.add_(1)
        model.save_pretrained(tmp_path)
    again = SimpleVLAOFT.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(again.language_model.lm_head.weight, model.language_model.lm_head.weight)
    stored = [key for path in tmp_path.glob("*.safetensors") for key in load_file(path)]
    assert len(stored) == len(set(stored))


def test_adapters_are_merged_on_saving(golden_folder, golden_cases, tmp_path):
    model = SimpleVLAOFT.from_pretrained(golden_folder, dtype=torch.float32)
    add_lora(model, 2, layers=model.adaptable_layers("all"), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    again = SimpleVLAOFT.from_pretrained(tmp_path, dtype=torch.float32)
    inputs = [golden_cases[name] for name in ("pixel_values", "input_ids", "attention_mask")]
    with torch.no_grad():
        logits = again(*inputs)
        torch.testing.assert_close(logits, model(*inputs), atol=1e-4, rtol=0)
        assert (logits - golden_cases["action_logits"]).abs().max() > 1e-2
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "lora" in key or "base_layer" in key]


def test_files_that_travel_with_a_checkpoint_are_kept(folder, tmp_path):
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "modeling_prismatic.py").write_text("raise RuntimeError('code from a checkpoint ran')")
    out = tmp_path / "out"
    SimpleVLAOFT.from_pretrained(folder).save_pretrained(out)
    for name in ("tokenizer.json", "modeling_prismatic.py"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((out / "dataset_statistics.json").read_text()) == json.loads(
        (folder / "dataset_statistics.json").read_text()
    )


def test_constants_that_old_checkpoints_store_are_ignored(folder):
    key = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    _edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(16)}))
    SimpleVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(_WEIGHT), f"lacks 1 weights: {_WEIGHT}"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "model.safetensors holds extra"),
        (lambda tensors: tensors.update({_WEIGHT: torch.ones(31, 32)}), rf"{_WEIGHT} has shape \(31, 32\).*\(32, 32\)"),
        (lambda tensors: tensors[_WEIGHT].fill_(float("nan")), f"{_WEIGHT} holds values that are not finite"),
    ],
    ids=["missing", "extra", "mis-shaped", "nan"],
)
def test_wrong_weights_are_refused_by_key(folder, edit, message):
    _edit_weights(folder, edit)
    with pytest.raises(ValueError, match=message):
        SimpleVLAOFT.from_pretrained(folder)


def test_a_truncated_file_is_refused_by_name(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        SimpleVLAOFT.from_pretrained(folder)


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path("pickle_was_run"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_refused_and_never_run(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match=rf"(?s)pickle.*{name}|{name}.*pickle"):
        SimpleVLAOFT.from_pretrained(folder)
    assert not (folder / "pickle_was_run").exists()


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({_WEIGHT: "model-00002.safetensors"}, r"model-00002\.safetensors is missing"),
        ({_WEIGHT: "../model.safetensors"}, r"'\.\./model\.safetensors'"),
        ({_WEIGHT: "weights.bin"}, r"'weights\.bin'"),
        (None, "has no weight_map"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(folder, weight_map, message):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        SimpleVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.pop("timm_model_ids"), "'timm_model_ids'"),
        (lambda data: data.pop("vision_towers"), "unknown vision tower 'tiny_dinov2_reg4'.*vision_towers"),
        (lambda data: data["vision_towers"]["tiny_siglip"].pop("depth"), r"no 'vision_towers\.tiny_siglip\.depth'"),
        (lambda data: data["text_config"].update(num_key_value_heads=2), "num_key_value_heads is 2"),
        (lambda data: data["text_config"].update(model_type="gemma"), "model_type is 'gemma'"),
        (lambda data: data["text_config"].update(hidden_size=48), r"has shape .*config\.json asks for"),
        (lambda data: data.update(use_fused_vision_backbone=False), "use_fused_vision_backbone"),
        (lambda data: data.update(n_action_bins=50000), "no room for 50000"),
        (lambda data: data.update(pad_token_id=5), "pad_token_id 5"),
        (lambda data: data.update(image_sizes=[60, 60]), "image size 60"),
        (lambda data: data.update(gripper="wide"), "gripper.*'wide'"),
        (lambda data: data.update(image_sizes=56), "image_sizes must be a list, got 56"),
        (lambda data: data.update(timm_model_ids=[1, 2]), "timm_model_ids must be text, got 1"),
        (lambda data: data.update(n_action_bins="many"), "n_action_bins must be a whole number, got 'many'"),
        (lambda data: data.update(chunk_size=0), "chunk_size must be at least 1, got 0"),
        (lambda data: data.update(text_config=None), "text_config must be an object"),
        (lambda data: data["text_config"].update(num_attention_heads=0), "num_heads must be at least 1, got 0"),
        (lambda data: data["text_config"].update(hidden_size="32"), r"text_config\.hidden_size must be a whole number"),
        (lambda data: data["text_config"].update(head_dim=8), r"text_config\.head_dim is 8"),
        (lambda data: data["text_config"].update(rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'"),
        (lambda data: data["vision_towers"]["tiny_siglip"].update(mlp_ratio="3"), r"tiny_siglip\.mlp_ratio must be a number"),
    ],
)
def test_a_wrong_config_is_refused_by_key(folder, edit, message):
    _edit_config(folder, edit)
    with pytest.raises(ValueError, match=message):
        SimpleVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_is_refused_by_name(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        SimpleVLAOFT.from_pretrained(folder)


def test_missing_statistics_are_refused_by_file_and_key(folder):
    (folder / "dataset_statistics.json").unlink()
    model = SimpleVLAOFT.from_pretrained(folder)
    assert list(model.config.norm_stats) == ["libero_spatial_no_noops"], "those of config.json serve"
    _edit_config(folder, lambda data: data.pop("norm_stats"))
    with pytest.raises(ValueError, match=r"dataset_statistics\.json is missing.*norm_stats"):
        SimpleVLAOFT.from_pretrained(folder)


def test_keys_of_the_config_that_only_the_published_code_reads_are_written_back(folder, tmp_path):
    foreign = {
        "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
        "transformers_version": "4.40.1",
        "torch_dtype": "bfloat16",
        "image_resize_strategy": "resize-naive",
    }
    _edit_config(folder, lambda data: (data.update(foreign), data["text_config"].update(torch_dtype="bfloat16")))
    SimpleVLAOFT.from_pretrained(folder).save_pretrained(tmp_path / "out")
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "out"))
    text = after.pop("text_config")
    assert before.pop("text_config").items() <= text.items()
    assert before.items() <= after.items()


def test_a_folder_without_config_or_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        SimpleVLAOFT.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        SimpleVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize("name", ["no/such/folder/here", "./nowhere at all"])
def test_a_folder_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match="no checkpoint at"):
        SimpleVLAOFT.from_pretrained(name)
