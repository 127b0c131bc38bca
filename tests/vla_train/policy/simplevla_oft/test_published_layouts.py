"""Every row of the table in docs/checkpoints.md, by folder and by hub id: what loads, what is asked for, what is refused."""

import logging
from collections.abc import Callable
from pathlib import Path

import published_layouts as layouts
import pytest
import torch
from published_layouts import LAYER, REMOTE_CODE, adapter_factors, golden_tensors, read, write, write_shards

from vla_train.config import PolicyConfig
from vla_train.export import Export
from vla_train.export_config import ExportConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.build import check_options
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy

Layout = Callable[..., Path]


@pytest.fixture(params=["folder", "hub"])
def put(request: pytest.FixtureRequest, hub, tmp_path: Path) -> Callable[..., str]:
    """Makes a folder of a layout, here or on the hub, and gives the name that finds it."""

    def put(layout: Layout, name: str = "someone/policy", **options) -> str:
        folder = layout(tmp_path / "made" / name, **options)
        if request.param == "folder":
            return str(folder)
        hub.upload(name, folder)
        return name

    return put


def weight(policy: SimpleVLAOFTPolicy, key: str = f"{LAYER}.weight") -> torch.Tensor:
    return policy.model.get_parameter(key).detach()


def golden_weight() -> torch.Tensor:
    return golden_tensors()[f"{LAYER}.weight"].bfloat16().float()


@pytest.mark.parametrize("layout", [layouts.simplevla_sft, layouts.simplevla_rl])
def test_simplevla_rls_releases_play_as_they_are(layout, put, make_policy):
    policy = make_policy(checkpoint=put(layout))
    assert policy.model.config.unnorm_key == "libero_spatial_no_noops"
    assert policy.codec.gripper == "libero"
    assert (policy.model.config.images, policy.model.config.jpeg) == ("openvla", True)
    assert torch.equal(weight(policy), golden_weight())


def test_the_code_that_a_release_lacks_comes_from_a_companion(put, make_policy, tmp_path, caplog):
    companion = put(layouts.simplevla_sft, "someone/sft")
    name = put(layouts.simplevla_rl)
    with caplog.at_level(logging.INFO):
        policy = make_policy(checkpoint=name, companion=companion)
    assert caplog.text.count(f"{companion} supplies {', '.join(REMOTE_CODE[:2])} of {name}") == 1
    policy.save_pretrained(str(tmp_path / "saved"))
    assert {path.name for path in (tmp_path / "saved").glob("*.py")} == set(REMOTE_CODE)


def test_a_full_save_of_simplevla_rl_asks_for_statistics_and_takes_them_from_a_companion(put, make_policy, tmp_path):
    name = put(layouts.simplevla_full_save)
    with pytest.raises(ValueError, match=r"no action statistics of suite libero_spatial.*policy\.companion"):
        make_policy(checkpoint=name)
    policy = make_policy(checkpoint=name, companion=put(layouts.simplevla_sft, "someone/sft"))
    assert policy.model.config.unnorm_key == "libero_spatial_no_noops"
    assert torch.equal(weight(policy), golden_tensors()[f"{LAYER}.weight"].float())
    # What is saved says it all by itself, and has what the published code wants.
    policy.save_pretrained(str(tmp_path / "saved"))
    again = make_policy(checkpoint=str(tmp_path / "saved"))
    assert again.codec.statistics.high.tolist() == policy.codec.statistics.high.tolist()
    assert {"preprocessor_config.json", *REMOTE_CODE} <= {path.name for path in (tmp_path / "saved").iterdir()}


def test_a_full_save_without_any_statistics_asks_for_them(put, make_policy, tmp_path):
    folder = layouts.simplevla_full_save(tmp_path / "save")
    write(folder / "config.json", {**read(folder / "config.json"), "norm_stats": None})
    with pytest.raises(ValueError, match=r"dataset_statistics\.json is missing.*policy\.companion"):
        check_options(PolicyConfig(checkpoint=str(folder)))
    check_options(PolicyConfig(checkpoint=str(folder), companion=put(layouts.simplevla_sft, "someone/sft")))
    (folder / "tokenizer.json").unlink()
    write(folder / "dataset_statistics.json", {"libero_10": layouts.golden_statistics()})
    with pytest.raises(ValueError, match=r"has no tokenizer\.json.*policy\.companion"):
        check_options(PolicyConfig(checkpoint=str(folder)))


def test_a_lora_save_of_simplevla_rl_asks_for_its_tokenizer_and_is_not_merged_twice(put, make_policy, caplog):
    name, companion = put(layouts.simplevla_lora_save), put(layouts.simplevla_sft, "someone/sft")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json.*policy\.companion"):
        make_policy(checkpoint=name)
    with caplog.at_level(logging.INFO):
        policy = make_policy(checkpoint=name, companion=companion)
    assert "weights hold lora_adapter/ already, which was trained on Haozhan72/Openvla-oft-SFT-libero10-traj1" in caplog.text
    a, b = adapter_factors()
    assert torch.equal(weight(policy), (golden_weight() + 2 * b @ a).bfloat16().float())


def test_a_grpo_release_of_rlinf_plays_all_suites_without_its_value_head(put, make_policy, caplog):
    name = put(layouts.rlinf_grpo)
    with caplog.at_level(logging.INFO):
        policy = make_policy(checkpoint=name, suite="libero_90")
    assert "the value head (5 tensors) is left out" in caplog.text
    assert policy.model.config.unnorm_key == "libero_130_no_noops_trajall"
    assert "images are prepared as RLinf does" in caplog.text
    assert policy.model.config.images == "rlinf"
    assert torch.equal(weight(policy), golden_weight())


def test_other_weights_that_the_model_lacks_are_refused_still(make_policy, tmp_path):
    folder = layouts.simplevla_sft(tmp_path / "other")
    write_shards(folder, {**golden_tensors(), "q_value_head.mlp.0.bias": torch.ones(3)})
    with pytest.raises(ValueError, match=r"holds q_value_head\.mlp\.0\.bias, which this model does not have"):
        make_policy(checkpoint=str(folder))


def test_adapters_beside_weights_that_were_made_of_another_base_are_not_merged_again(put, make_policy, caplog):
    name = put(layouts.rlinf_base_lora, record="/mnt/public/openvla-7b")
    with caplog.at_level(logging.INFO):
        assert torch.equal(weight(make_policy(checkpoint=name)), golden_weight())
    assert "figures of RLinf's dataset libero_130_no_noops_trajall are without: policy.images rlinf" in caplog.text


@pytest.mark.parametrize("record", [None, "", ".", "/mnt/public/policy", "someone/policy"])
def test_adapters_beside_weights_that_may_be_their_base_are_asked_about(record, put, make_policy, tmp_path):
    name = put(layouts.rlinf_base_lora, record=record)
    with pytest.raises(ValueError, match=r"set policy\.adapters to merged .* or separate"):
        make_policy(checkpoint=name)
    assert torch.equal(weight(make_policy(checkpoint=name, adapters="merged")), golden_weight())


def test_adapters_beside_their_base_are_put_on_top_where_that_is_asked_for(put, make_policy, tmp_path):
    name = put(layouts.rlinf_base_lora, record="someone/policy")
    a, b = adapter_factors()
    merged = golden_weight() + 2 * b @ a
    torch.testing.assert_close(weight(make_policy(checkpoint=name, adapters="separate")), merged)
    # They may be trained further; what is saved then names the weights here as its base, without another question.
    policy = make_policy(checkpoint=name, adapters="separate", lora_rank=2)
    policy.save_pretrained(str(tmp_path / "saved"))
    torch.testing.assert_close(weight(make_policy(checkpoint=str(tmp_path / "saved"))), merged)


def test_adapters_that_are_named_themselves_are_not_merged_into_weights_that_may_hold_them(make_policy, tmp_path):
    folder = layouts.rlinf_base_lora(tmp_path / "policy", record=str(tmp_path / "policy"))
    with pytest.raises(
        ValueError, match=r"lora_adapter holds the adapters that lie in .*policy/lora_adapter too.*adapters mer"
    ):
        check_options(PolicyConfig(checkpoint=str(folder / "lora_adapter")))
    other = layouts.simplevla_sft(tmp_path / "other")
    record = folder / "lora_adapter" / "adapter_config.json"
    write(record, {**read(record), "base_model_name_or_path": str(other)})
    a, b = adapter_factors()
    policy = make_policy(checkpoint=str(folder / "lora_adapter"))
    torch.testing.assert_close(weight(policy), golden_weight() + 2 * b @ a)


def test_adapters_that_are_asked_for_and_are_not_there_are_an_error(make_policy, tmp_path):
    with pytest.raises(ValueError, match=r"policy\.adapters is separate, but .* has no lora_adapter/adapter_config\.json"):
        make_policy(checkpoint=str(layouts.simplevla_sft(tmp_path / "sft")), adapters="separate")


def test_adapters_trained_with_a_companion_say_all_that_their_base_does_not(put, make_policy, tmp_path):
    name, companion = put(layouts.simplevla_lora_save), put(layouts.simplevla_sft, "someone/sft")
    make_policy(checkpoint=name, companion=companion, lora_rank=2).save_pretrained(str(tmp_path / "saved"))
    again = make_policy(checkpoint=str(tmp_path / "saved"))
    assert again.model.config.unnorm_key == "libero_spatial_no_noops"


@pytest.mark.parametrize("below", [".", "actor", "actor/model_state_dict", "actor/dcp_checkpoint"])
def test_a_save_of_rlinfs_trainer_is_refused_with_the_converter_named(below, hub, tmp_path):
    folder = layouts.rlinf_trainer_save(tmp_path / "global_step_10") / below
    hub.upload("someone/save", folder)
    for name in (str(folder), "someone/save"):
        with pytest.raises(
            ValueError, match=r"trainer's own save .*convert it by RLinf's .*rlinf\.utils\.ckpt_convertor\.fsdp_convertor"
        ):
            check_options(PolicyConfig(checkpoint=name))
    assert hub.fetched == []


def test_continuous_openvla_oft_is_refused_by_name(put):
    with pytest.raises(ValueError, match=r"continuous OpenVLA-OFT.*action_head--150000_checkpoint\.pt.*proprio_projector--"):
        check_options(PolicyConfig(checkpoint=put(layouts.openvla_oft_continuous)))


@pytest.mark.parametrize(("suite", "message"), [("libero_10", "no action statistics of suite"), (None, "cannot tell which")])
def test_openvla_7b_itself_asks_which_of_its_many_statistics_to_use(suite, message, put, make_policy):
    with pytest.raises(ValueError, match=rf"{message}.*bridge_orig.*|{message}.*policy\.statistics_key"):
        make_policy(checkpoint=put(layouts.openvla_7b), suite=suite)


def test_a_companion_of_another_model_is_refused_before_weights_are_read(make_policy, tmp_path):
    folder, other = layouts.simplevla_full_save(tmp_path / "save"), layouts.simplevla_sft(tmp_path / "other")
    config = read(other / "config.json")
    write(other / "config.json", {**config, "text_config": {**config["text_config"], "hidden_size": 64}})
    with pytest.raises(ValueError, match=r"policy\.companion .*other is of another model than .*save: language is .*64"):
        check_options(PolicyConfig(checkpoint=str(folder), companion=str(other)))


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (layouts.simplevla_lora_save, {}, r"policy\.companion"),
        (layouts.simplevla_full_save, {}, r"policy\.companion"),
        (layouts.openvla_7b, {}, r"policy\.statistics_key"),
        (layouts.simplevla_sft, {"chunk_size": 4}, "chunk_size is 4"),
        (layouts.simplevla_sft, {"companion": "nobody/nothing"}, "nobody/nothing is no folder here"),
    ],
)
def test_what_cannot_play_is_refused_before_its_weights_are_fetched(layout, options, message, hub, make_policy, tmp_path):
    hub.upload("someone/policy", layout(tmp_path / "made"))
    with pytest.raises(ValueError, match=message):
        make_policy(checkpoint="someone/policy", **options)
    assert not [name for name in hub.fetched if name.endswith(".safetensors") and "adapter" not in name]


def test_a_companions_weights_are_not_fetched(hub, make_policy, tmp_path):
    hub.upload("someone/sft", layouts.simplevla_sft(tmp_path / "sft"))
    make_policy(checkpoint=str(layouts.simplevla_full_save(tmp_path / "save")), companion="someone/sft")
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]


def test_a_companion_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / "run").mkdir()
    config = PolicyConfig(checkpoint=str(layouts.simplevla_sft(tmp_path / "sft")), companion=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"policy\.companion .*run has no config\.json"):
        check_options(config)
    write(tmp_path / "run" / "config.json", {"iterations": 3})
    with pytest.raises(ValueError, match=r"policy\.companion .*run: config\.json has no 'timm_model_ids'"):
        check_options(config)


def test_an_empty_file_of_statistics_is_none(make_policy, tmp_path):
    folder = layouts.simplevla_full_save(tmp_path / "save")
    write(folder / "dataset_statistics.json", {})
    with pytest.raises(ValueError, match=r"policy\.companion"):
        make_policy(checkpoint=str(folder))
    policy = make_policy(checkpoint=str(folder), companion=str(layouts.simplevla_sft(tmp_path / "sft")))
    assert policy.model.config.unnorm_key == "libero_spatial_no_noops"


@pytest.mark.parametrize("companion", ["no/such/folder", "nowhere"])
def test_a_companion_that_does_not_exist_is_refused_at_once(companion, tmp_path):
    with pytest.raises(ValueError, match=f"no checkpoint at {companion}"):
        check_options(PolicyConfig(checkpoint=str(layouts.simplevla_sft(tmp_path / "sft")), companion=companion))


def test_a_companion_without_a_checkpoint_is_refused():
    with pytest.raises(ValueError, match=r"policy\.companion demo supplies what a checkpoint lacks"):
        check_options(PolicyConfig(companion="demo"))


def test_a_companion_replaces_nothing(make_policy, tmp_path):
    folder, companion = layouts.simplevla_sft(tmp_path / "one"), layouts.simplevla_sft(tmp_path / "two", dataset="libero_10")
    (companion / "tokenizer.json").write_text("damaged, and not looked at")
    policy = make_policy(checkpoint=str(folder), companion=str(companion))
    assert list(policy.model.config.norm_stats) == ["libero_spatial_no_noops"]


def test_shards_of_two_saves_are_refused(make_policy, tmp_path):
    folder = layouts.simplevla_sft(tmp_path / "sft")
    full = layouts.simplevla_full_save(tmp_path / "full")
    name = "model-00002-of-00002.safetensors"
    (folder / name).write_bytes((full / name).read_bytes())
    with pytest.raises(ValueError, match=r"parts of two saves: model-00001.* is all BF16, model-00002.* all F32"):
        make_policy(checkpoint=str(folder))


def test_a_whole_file_beside_the_shards_of_another_save_is_refused(tmp_path, golden_folder):
    folder = layouts.simplevla_sft(tmp_path / "sft")
    (folder / "model.safetensors").write_bytes((golden_folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"holds two saves, model\.safetensors and the one that .*index\.json lists"):
        check_options(PolicyConfig(checkpoint=str(folder)))


def test_an_export_is_whole_with_what_the_companion_supplies(tmp_path):
    save, companion = layouts.simplevla_lora_save(tmp_path / "save"), layouts.simplevla_sft(tmp_path / "sft")
    output = tmp_path / "whole"
    Export(ExportConfig(checkpoint=str(save), companion=str(companion), output=output)).write()
    assert {"tokenizer.json", "dataset_statistics.json", *REMOTE_CODE} <= {path.name for path in output.iterdir()}
    assert "libero_spatial_no_noops" in SimpleVLAOFT.from_pretrained(output).config.norm_stats
