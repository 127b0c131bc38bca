"""Options that cannot become a policy are refused at once, with what is accepted."""

import shutil
from pathlib import Path

import pytest
import torch

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.build import check_options
from vla_train.policy.simplevla_oft.prompts import TOKENIZER_FILE
from vla_train.policy.simplevla_oft.small_tokenizer import small_tokenizer


@pytest.fixture
def folder(golden_folder: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(golden_folder, tmp_path / "published", ignore=lambda *_: ["README.md", "cases.npz"])
    (folder / TOKENIZER_FILE).write_text(small_tokenizer().to_str())
    return folder


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_large_model_starts_from_random_weights_only_where_asked_to():
    with pytest.raises(ValueError, match=r"openvla-7b goes on .*--policy\.checkpoint.*--policy\.random-weights"):
        check_options(PolicyConfig(size="openvla-7b"))
    check_options(PolicyConfig(size="openvla-7b", random_weights=True))


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("random_weights", [False, True])
def test_small_models_start_from_random_weights(size, random_weights):
    check_options(PolicyConfig(size=size, random_weights=random_weights))


def test_a_checkpoint_may_be_named_with_the_recipes_of_the_large_model(folder):
    check_options(PolicyConfig(size="openvla-7b", checkpoint=str(folder)))


def test_random_weights_and_a_checkpoint_contradict_each_other(folder):
    with pytest.raises(ValueError, match=r"random_weights contradicts policy\.checkpoint"):
        check_options(PolicyConfig(checkpoint=str(folder), random_weights=True))


def test_cuda_without_a_gpu_is_refused(no_gpu):
    with pytest.raises(ValueError, match=r"policy\.device is cuda, but PyTorch finds no GPU: set it to auto or cpu"):
        check_options(PolicyConfig(device="cuda"))
    check_options(PolicyConfig(device="auto"))
    check_options(PolicyConfig(device="cpu"))


@pytest.mark.parametrize("name", ["no/such/folder/here", "./nowhere at all", "somewhere"])
def test_a_name_that_is_neither_a_folder_nor_one_of_the_hub_is_refused(name):
    with pytest.raises(ValueError, match=f"no checkpoint at {name}: expected a folder, demo, or owner/name"):
        check_options(PolicyConfig(checkpoint=name))


def test_a_mistyped_run_beside_others_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint at runs/frist"):
        check_options(PolicyConfig(checkpoint="runs/frist"))


def test_a_file_is_no_checkpoint(folder):
    with pytest.raises(ValueError, match=r"model\.safetensors is a file: expected the folder"):
        check_options(PolicyConfig(checkpoint=str(folder / "model.safetensors")))


def test_a_hub_id_is_checked_by_the_names_of_its_files(monkeypatch):
    names = ["config.json", "model.safetensors"]
    monkeypatch.setattr("vla_train.policy.simplevla_oft.checkpoint.hub_file_names", lambda hub_id: names)
    check_options(PolicyConfig(checkpoint="someone/policy"))
    names.append("proprio_projector--10_checkpoint.pt")
    with pytest.raises(ValueError, match="someone/policy is a checkpoint of continuous OpenVLA-OFT"):
        check_options(PolicyConfig(checkpoint="someone/policy"))


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", r"config\.json is missing"),
        ("model.safetensors", r"no \*\.safetensors"),
        ("tokenizer.json", r"has no tokenizer\.json.*policy\.companion"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(folder, remove, message):
    (folder / remove).unlink()
    with pytest.raises(ValueError, match=message):
        check_options(PolicyConfig(checkpoint=str(folder)))


def test_a_continuous_folder_is_refused(folder):
    (folder / "action_head--150000_checkpoint.pt").touch()
    with pytest.raises(ValueError, match="continuous OpenVLA-OFT"):
        check_options(PolicyConfig(checkpoint=str(folder)))


def test_whoever_builds_a_policy_is_refused_the_same(make_policy, monkeypatch):
    def nothing_may_be_made(*_, **__):
        raise AssertionError("a model was made")

    monkeypatch.setattr(SimpleVLAOFT, "from_random", nothing_may_be_made)
    with pytest.raises(ValueError, match="openvla-7b goes on from a trained policy"):
        make_policy(size="openvla-7b")
