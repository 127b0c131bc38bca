"""Adapters saved alone and loaded again, here and by peft itself; peft's own folders; and what is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.build import build_policy, check_options
from vla_train.policy.simplevla_oft.checkpoint_saving import plain_weights
from vla_train.policy.simplevla_oft.lora import lora_layers
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.policy.simplevla_oft.published_names import published_pieces
from vla_train.types import EnvDescription

_LAYER = "language_model.model.layers.1.self_attn"
_FILES = {"adapter_config.json", "config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"}
_ADAPTERS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights in the published layout."""
    bound = np.ones(7, np.float32)
    env = EnvDescription(observations={}, action_low=-bound, action_high=bound, suite="libero_spatial")
    folder = tmp_path_factory.mktemp("adapters") / "base"
    build_policy(PolicyConfig(device="cpu", dtype="float32"), env, seed=0).save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapted(base: Path, make_policy, tmp_path: Path) -> tuple[SimpleVLAOFTPolicy, Path]:
    """A policy whose adapters of rank 4 have moved, and the folder that it was saved in."""
    policy = make_policy(checkpoint=str(base), lora_rank=4)
    _move(policy)
    policy.save_pretrained(str(tmp_path / "adapters"))
    return policy, tmp_path / "adapters"


def _move(policy: SimpleVLAOFTPolicy) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def _logprobs(policy: SimpleVLAOFTPolicy, make_observation) -> Tensor:
    first = policy.model.config.first_action_id
    shape = 3, policy.chunk_size * policy.action_dim
    tokens = torch.from_numpy(np.random.default_rng(0).integers(first, first + 256, shape))
    return policy.evaluate(make_observation(3), {"token_ids": tokens}, temperature=1.0)["logprobs"].detach()


def _published(model: SimpleVLAOFT) -> dict[str, Tensor]:
    weights = plain_weights(model)
    return {key: piece.of(weights[piece.parameter].read()) for key, piece in published_pieces(weights).items()}


def _tree(weights: dict[str, Tensor]) -> nn.Module:
    """A module with a linear layer for every matrix among published weights, under its published name."""
    root = nn.Module()
    for key, weight in weights.items():
        *path, last, _ = key.split(".")
        if weight.ndim != 2 or not key.endswith(".weight") or "embed" in key:
            continue
        parent = root
        for name in path:
            if name not in dict(parent.named_children()):
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data.copy_(weight)
        parent.add_module(last, layer)
    return root


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("base_dtype", ["auto", "fp8", "nf4"])
def test_adapters_saved_alone_go_on_where_they_were(base_dtype, base, make_policy, make_observation, tmp_path):
    policy = make_policy(checkpoint=str(base), lora_rank=4, base_dtype=base_dtype)
    _move(policy)
    policy.save_pretrained(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == _FILES | {_ADAPTERS}
    expected = _logprobs(policy, make_observation)
    again = make_policy(checkpoint=str(tmp_path), lora_rank=4, base_dtype=base_dtype, seed=1)
    assert torch.equal(_logprobs(again, make_observation), expected)
    named = dict(policy.model.named_parameters())
    assert {name: p.requires_grad for name, p in again.model.named_parameters()} == {
        name: p.requires_grad for name, p in named.items()
    }
    assert all(torch.equal(parameter, named[name]) for name, parameter in again.model.named_parameters())
    if base_dtype != "auto":
        played = make_policy(checkpoint=str(tmp_path), base_dtype=base_dtype)  # as an evaluation asks for it
        assert torch.equal(_logprobs(played, make_observation), expected)


@pytest.mark.parametrize("rank", [0, 8])
def test_adapters_of_another_rank_are_merged_and_the_whole_is_then_saved(
    rank, adapted, make_policy, make_observation, tmp_path
):
    policy, folder = adapted
    merged = make_policy(checkpoint=str(folder), lora_rank=rank)
    torch.testing.assert_close(_logprobs(merged, make_observation), _logprobs(policy, make_observation), atol=1e-5, rtol=0)
    assert {len(layer.lora_A) for layer in lora_layers(merged.model).values()} == ({rank} if rank else set())
    merged.save_pretrained(str(tmp_path / "whole"))
    whole = make_policy(checkpoint=str(tmp_path / "whole"))
    assert not (tmp_path / "whole" / _ADAPTERS).exists()
    assert torch.equal(_logprobs(whole, make_observation), _logprobs(merged, make_observation))


def test_merging_rounds_once_from_float32(adapted, base):
    _, folder = adapted
    exact = _published(SimpleVLAOFT.from_pretrained(folder, dtype=torch.float32))
    rounded = _published(SimpleVLAOFT.from_pretrained(folder, dtype=torch.bfloat16))
    assert all(torch.equal(rounded[key], exact[key].bfloat16()) for key in exact)
    assert not torch.equal(
        exact[f"{_LAYER}.k_proj.weight"], _published(SimpleVLAOFT.from_pretrained(base))[f"{_LAYER}.k_proj.weight"]
    )


def test_adapters_that_went_on_are_saved_alone_again_on_the_same_base(adapted, base, make_policy, tmp_path):
    _, folder = adapted
    again = make_policy(checkpoint=str(folder), lora_rank=4)
    again.save_pretrained(str(tmp_path / "again"))
    for name in ("adapter_config.json", "config.json", _ADAPTERS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base.resolve())


def test_what_is_written_takes_little_and_as_much_as_was_announced(adapted, base):
    policy, folder = adapted
    written = sum(file.stat().st_size for file in folder.iterdir())
    assert 0.9 * written < policy.export_bytes <= written
    assert written < 0.15 * (base / "model.safetensors").stat().st_size
    policy.model.base_checkpoint = None
    assert 0.9 < policy.export_bytes / sum(file.stat().st_size for file in base.iterdir()) <= 1


def test_adapters_on_random_weights_are_saved_merged(make_policy, tmp_path):
    make_policy(lora_rank=2).save_pretrained(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == _FILES - {"adapter_config.json"} | {"model.safetensors"}


def test_one_layout_replaces_the_other(adapted):
    policy, folder = adapted
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).write_bytes(b"old")
    policy.save_pretrained(str(folder))
    assert not [*folder.glob("model*")]
    policy.model.save_pretrained(folder)
    assert not [*folder.glob("adapter*")]


def test_a_base_named_relatively_is_written_absolutely(base, make_policy, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    policy = make_policy(checkpoint="base", lora_rank=2)
    monkeypatch.chdir(tmp_path)
    policy.save_pretrained("saved")
    assert json.loads(Path("saved/adapter_config.json").read_text())["base_model_name_or_path"] == str(base.resolve())
    make_policy(checkpoint="saved", lora_rank=2)


def test_adapters_on_the_demo_name_it_as_such(make_policy, tmp_path):
    policy = make_policy(checkpoint="demo", lora_rank=2, suite=None)
    policy.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo"
    assert not list(tmp_path.glob("model*"))
    make_policy(checkpoint=str(tmp_path), suite=None)


def test_layers_that_adapters_were_not_saved_for_get_fresh_ones_and_others_stay_as_they_are(
    base, adapted, make_policy, make_observation, tmp_path
):
    policy = make_policy(checkpoint=str(base), lora_rank=4, lora_layers="language")
    _move(policy)
    policy.save_pretrained(str(tmp_path / "language"))
    more = make_policy(checkpoint=str(tmp_path / "language"), lora_rank=4)
    assert set(lora_layers(more.model)) == set(more.model.adaptable_layers("all")) > set(lora_layers(policy.model))
    assert all(layer.lora_A.requires_grad for layer in lora_layers(more.model).values())
    torch.testing.assert_close(_logprobs(more, make_observation), _logprobs(policy, make_observation), atol=1e-6, rtol=0)

    everywhere, folder = adapted
    fewer = make_policy(checkpoint=str(folder), lora_rank=4, lora_layers="language")
    trained = {name for name, layer in lora_layers(fewer.model).items() if layer.lora_B.requires_grad}
    assert trained == set(fewer.model.adaptable_layers("language"))
    assert torch.equal(_logprobs(fewer, make_observation), _logprobs(everywhere, make_observation))


# --- peft itself


def test_peft_reads_what_was_saved_and_merges_it_to_the_same_weights(adapted, base):
    policy, folder = adapted
    config = peft.PeftConfig.from_pretrained(str(folder))
    assert (config.peft_type, config.r, config.lora_alpha, config.bias) == ("LORA", 4, 4, "none")
    assert len(peft.load_peft_weights(str(folder))) == 2 * len(config.target_modules)
    tree = _tree(_published(SimpleVLAOFT.from_pretrained(base, dtype=torch.float32)))
    merged = peft.PeftModel.from_pretrained(tree, str(folder)).merge_and_unload().state_dict()
    ours = _published(policy.model)
    assert set(config.target_modules) <= {key.removesuffix(".weight") for key in merged}
    for key, weight in merged.items():
        torch.testing.assert_close(ours[key], weight, atol=1e-6, rtol=0)


@pytest.fixture
def made_by_peft(base: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Tensor]]]:
    """Makes a folder that peft wrote, and the weights that peft merges it to."""

    def make(**options: Any) -> tuple[Path, dict[str, Tensor]]:
        torch.manual_seed(0)
        tree = _tree(_published(SimpleVLAOFT.from_pretrained(base, dtype=torch.float32)))
        targets = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "fc1"], "r": 4, "lora_alpha": 6}
        model = peft.get_peft_model(tree, peft.LoraConfig(init_lora_weights=False, **targets | options))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.mul_(0.3)
        model.save_pretrained(str(tmp_path / "peft"))
        _edit_config(tmp_path / "peft", base_model_name_or_path=str(base))
        return tmp_path / "peft", model.merge_and_unload().state_dict()

    return make


_OPTIONS = [{}, {"rank_pattern": {"k_proj": 2, "layers.1.self_attn.v_proj": 8}, "alpha_pattern": {"k_proj": 5, "fc1": 1}}]


@pytest.mark.parametrize("options", _OPTIONS, ids=["alike", "by layer"])
@pytest.mark.parametrize("rank", [0, 4])
def test_what_peft_made_is_the_policy_that_peft_merges(rank, options, made_by_peft, make_policy, make_observation):
    folder, merged = made_by_peft(**options)
    policy = make_policy(checkpoint=str(folder), lora_rank=rank)
    ours = _published(policy.model)
    for key, weight in merged.items():
        torch.testing.assert_close(ours[key], weight, atol=1e-6, rtol=0)
    assert bool(lora_layers(policy.model)) == bool(rank)
    assert torch.isfinite(_logprobs(policy, make_observation)).all()


@pytest.mark.parametrize("base_dtype", ["auto", "fp8"])
def test_query_key_and_value_with_an_a_each_become_one_adapter_that_is_saved_again(
    base_dtype, made_by_peft, make_policy, make_observation, tmp_path
):
    folder, _ = made_by_peft()
    policy = make_policy(checkpoint=str(folder), lora_rank=4, base_dtype=base_dtype)
    ranks = {name.rpartition(".")[2]: len(layer.lora_A) for name, layer in lora_layers(policy.model).items()}
    assert (ranks["qkv_proj"], ranks["gate_up_proj"], ranks["o_proj"], ranks["down_proj"]) == (12, 4, 4, 4)
    _move(policy)
    policy.save_pretrained(str(tmp_path / "saved"))
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "saved")).r == 4
    again = make_policy(checkpoint=str(tmp_path / "saved"), lora_rank=4, base_dtype=base_dtype)
    assert torch.equal(_logprobs(again, make_observation), _logprobs(policy, make_observation))


def test_keys_may_name_pefts_default_adapter(adapted):
    policy, folder = adapted
    tensors = {
        key.replace(".weight", ".default.weight"): value
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    merged = _published(SimpleVLAOFT.from_pretrained(folder, dtype=torch.float32))
    for key, weight in _published(policy.model).items():
        torch.testing.assert_close(merged[key], weight, atol=1e-6, rtol=0)


def test_a_folder_without_files_of_its_own_takes_those_of_the_base(adapted, base, make_policy):
    _, folder = adapted
    for name in _FILES - {"adapter_config.json"}:
        (folder / name).unlink()
    policy = make_policy(checkpoint=str(folder))
    assert policy.model.config.norm_stats == json.loads((base / "dataset_statistics.json").read_text())


def test_statistics_and_settings_of_the_folder_count_before_those_of_the_base(adapted, make_policy):
    policy, folder = adapted
    (entry,) = policy.model.config.norm_stats.values()
    other = json.loads(json.dumps(entry))
    other["action"]["q99"] = [2.0] * 7
    policy.use_statistics("mine", other)
    policy.save_pretrained(str(folder))
    again = make_policy(checkpoint=str(folder), statistics_key="mine")
    assert again.codec.statistics.high.tolist() == [2.0] * 7
    (folder / "config.json").unlink()
    (folder / "dataset_statistics.json").write_text(json.dumps({"alone": other}))
    assert make_policy(checkpoint=str(folder), suite=None).model.config.unnorm_key == "alone"


# --- what is refused


def _key(factor: str) -> str:
    return f"base_model.model.{_LAYER}.k_proj.lora_{factor}.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(extra=torch.ones(1)), f"{_ADAPTERS} holds extra, which is no factor"),
        (
            lambda t: t.update({"base_model.model.x.lora_embedding_A": torch.ones(1)}),
            "holds base_model.model.x.lora_embedding_A",
        ),
        (lambda t: t.pop(_key("A")), rf"lacks {_LAYER}\.k_proj\.lora_A"),
        (lambda t: t.pop(_key("B")), rf"lacks {_LAYER}\.k_proj\.lora_B"),
        (lambda t: t.update({_key("A"): torch.ones(3, 192)}), r"k_proj have shapes \(3, 192\).*gives them rank 4"),
        (lambda t: t.update({_key("A"): torch.ones(4, 190)}), r"k_proj have shapes \(4, 190\).*maps 192 inputs to 192"),
        (lambda t: t.update({_key("B"): torch.ones(4)}), r"k_proj have shapes .*\(4,\)"),
        (lambda t: t[_key("B")].fill_(float("inf")), rf"{_LAYER}\.k_proj\.lora_B\.weight holds values that are not finite"),
        (lambda t: t.clear(), "holds no adapters"),
        (
            lambda t: t.update({"a.b.lora_A.weight": torch.ones(4, 2), "a.b.lora_B.weight": torch.ones(2, 4)}),
            r"adapter of a\.b, which is no linear layer",
        ),
        (
            lambda t: t.update({f"language_model.model.embed_tokens.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}),
            r"embed_tokens, which is no linear layer",
        ),
    ],
)
def test_wrong_adapters_are_refused_by_name(edit, message, adapted):
    _, folder = adapted
    tensors = load_file(folder / _ADAPTERS)
    edit(tensors)
    save_file(tensors, folder / _ADAPTERS)
    with pytest.raises(ValueError, match=message):
        SimpleVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the weights"),
        ({"r": 0}, "the rank r must be a whole number, at least 1, got 0"),
        ({"rank_pattern": {"q_proj": "2"}}, "the rank q_proj must be a whole number"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern must give numbers by regular expressions"),
        ({"alpha_pattern": [1]}, "alpha_pattern must give numbers"),
        ({"lora_alpha": None}, "lora_alpha must be a positive number, got None"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must name the checkpoint under the adapters, got None"),
        (
            {"base_model_name_or_path": "/moved/away"},
            r"adapters holds adapters of /moved/away, which is no checkpoint here.*correct base_model_name_or_path",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_adapters_of_another_kind_or_base_are_refused_before_anything_is_started(changes, message, adapted):
    _, folder = adapted
    _edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as refusal:
        check_options(PolicyConfig(checkpoint=str(folder)))
    assert "\n" not in str(refusal.value)


def test_adapters_on_adapters_are_refused(adapted, tmp_path):
    _, folder = adapted
    shutil.copytree(folder, tmp_path / "second")
    _edit_config(tmp_path / "second", base_model_name_or_path=str(folder))
    with pytest.raises(ValueError, match=r"second holds adapters of .*which holds adapters itself: export that"):
        SimpleVLAOFT.from_pretrained(tmp_path / "second")


def test_an_adapter_of_the_head_is_merged_and_cannot_go_on(adapted, base, make_policy):
    _, folder = adapted
    head = load_file(base / "model.safetensors")["language_model.lm_head.weight"]
    a, b = torch.rand(4, head.shape[1]), torch.rand(len(head), 4)
    name = "base_model.model.language_model.lm_head"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, folder / _ADAPTERS)
    merged = make_policy(checkpoint=str(folder)).model.language_model.lm_head.weight
    torch.testing.assert_close(merged.detach(), head + b @ a)
    with pytest.raises(ValueError, match="lm_head, which can only be merged: export it"):
        make_policy(checkpoint=str(folder), lora_rank=4)


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path("pickle_was_run"),)


@pytest.mark.parametrize(
    ("name", "message"),
    [("adapter_model.bin", "only adapter_model.bin, a pickle"), (_ADAPTERS, "damaged or no safetensors file")],
)
def test_a_pickle_is_refused_and_never_run(name, message, adapted, monkeypatch):
    _, folder = adapted
    monkeypatch.chdir(folder)
    (folder / _ADAPTERS).unlink()
    (folder / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match=message):
        SimpleVLAOFT.from_pretrained(folder)
    assert not (folder / "pickle_was_run").exists()


def test_damaged_or_missing_adapters_are_refused_by_name(adapted):
    _, folder = adapted
    (folder / _ADAPTERS).write_bytes((folder / _ADAPTERS).read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{_ADAPTERS} is damaged"):
        SimpleVLAOFT.from_pretrained(folder)
    (folder / _ADAPTERS).unlink()
    with pytest.raises(ValueError, match=rf"{_ADAPTERS} is missing, there is none"):
        SimpleVLAOFT.from_pretrained(folder)
