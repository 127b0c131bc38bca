"""Checkpoints on the hub, with a hub of these tests' own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.build import check_options
from vla_train.policy.simplevla_oft.hub import hub_file_names


def test_weights_and_data_are_fetched_and_no_pickles(hub, golden_folder):
    hub.upload("someone/policy", golden_folder, "training_state.pt", "pytorch_model.bin")
    SimpleVLAOFT.from_pretrained("someone/policy")
    assert {"config.json", "dataset_statistics.json", "model.safetensors"} <= set(hub.fetched)
    assert not [name for name in hub.fetched if name.endswith((".pt", ".bin"))]


def test_a_continuous_checkpoint_is_refused_before_anything_is_fetched(hub, golden_folder):
    hub.upload("someone/oft", golden_folder, "action_head--150000_checkpoint.pt")
    with pytest.raises(ValueError, match=r"someone/oft is a checkpoint of continuous OpenVLA-OFT.*action_head--150000"):
        SimpleVLAOFT.from_pretrained("someone/oft")
    assert hub.fetched == []


def test_what_was_fetched_before_is_loaded_without_a_connection(hub, golden_folder):
    hub.upload("someone/policy", golden_folder)
    SimpleVLAOFT.from_pretrained("someone/policy")
    hub.connected = False
    assert set(hub_file_names("someone/policy")) == set(hub.fetched)
    SimpleVLAOFT.from_pretrained("someone/policy")


def test_adapters_and_their_base_may_both_be_on_the_hub_and_weights_are_fetched_last(hub, golden_folder, tmp_path):
    hub.upload("someone/policy", golden_folder)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "someone/policy"}
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(config))
    layer = "language_model.model.layers.1.self_attn.o_proj"
    a, b = torch.rand(2, 32), torch.rand(32, 2)
    tensors = {f"base_model.model.{layer}.lora_A.weight": a, f"base_model.model.{layer}.lora_B.weight": b}
    save_file(tensors, tmp_path / "adapters" / "adapter_model.safetensors")
    hub.upload("someone/adapters", tmp_path / "adapters")
    check_options(PolicyConfig(checkpoint=str(tmp_path / "adapters")))
    assert hub.fetched == []
    base = load_file(golden_folder / "model.safetensors")[f"{layer}.weight"]
    for name in (tmp_path / "adapters", "someone/adapters"):
        model = SimpleVLAOFT.from_pretrained(name, dtype=torch.float32)
        torch.testing.assert_close(model.get_parameter(f"{layer}.weight").detach(), base.float() + 2 * b @ a)
    (tmp_path / "adapters" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "someone/adapters"})
    )
    with pytest.raises(ValueError, match="someone/adapters, which holds adapters itself"):
        SimpleVLAOFT.from_pretrained(tmp_path / "adapters")


def test_a_name_that_the_hub_does_not_know_is_refused_with_the_cause_in_one_line(hub):
    with pytest.raises(ValueError, match=r"^nobody/nothing is no folder here, and cannot be had .*: 404: no nobody/nothing$"):
        SimpleVLAOFT.from_pretrained("nobody/nothing")


@pytest.mark.parametrize("ask", [hub_file_names, SimpleVLAOFT.from_pretrained])
def test_without_a_connection_what_was_never_fetched_is_refused(ask, hub, golden_folder):
    hub.upload("someone/policy", golden_folder)
    hub.connected = False
    with pytest.raises(ValueError, match=r"someone/policy .*no connection"):
        ask("someone/policy")
