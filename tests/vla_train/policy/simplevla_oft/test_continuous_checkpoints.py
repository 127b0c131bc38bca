"""Continuous OpenVLA-OFT has the layout of SimpleVLA-OFT, and more: it is refused, as what it is."""

import json
import shutil
from pathlib import Path

import pytest

from vla_train.policy.simplevla_oft import SimpleVLAOFT


@pytest.fixture
def folder(golden_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden_folder, tmp_path / "oft", ignore=lambda *_: ["README.md", "cases.npz"])


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["action_head--150000_checkpoint.pt"], "a continuous action head"),
        (
            ["action_head--latest_checkpoint.pt", "noisy_action_projector--latest_checkpoint.pt"],
            "the input of a diffusion head",
        ),
        (["proprio_projector--150000_checkpoint.pt"], "a projector of proprioception"),
        (["vision_backbone--150000_checkpoint.pt"], "a vision backbone with FiLM"),
        (["action_head.bin"], "a continuous action head"),
        (["proprio_projector.safetensors"], "a projector of proprioception"),
    ],
)
def test_a_folder_with_parts_of_continuous_openvla_oft_is_refused_by_file(folder, files, named):
    for name in files:
        (folder / name).write_bytes(b"never read")
    with pytest.raises(ValueError, match="is a checkpoint of continuous OpenVLA-OFT") as refusal:
        SimpleVLAOFT.from_pretrained(folder)
    assert all(name in str(refusal.value) for name in [*files, str(folder), named])


@pytest.mark.parametrize("name", ["action_heads.py", "vision_backbone.json", "action_header.pt", "optimizer.pt"])
def test_files_that_are_no_such_parts_do_no_harm(folder, name):
    (folder / name).write_text("{}")
    SimpleVLAOFT.from_pretrained(folder)


def test_a_merged_adapter_beside_the_weights_does_no_harm(folder):
    (folder / "lora_adapter").mkdir()
    (folder / "lora_adapter" / "adapter_model.safetensors").write_bytes(b"never read")
    SimpleVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("use_l1_regression", True, r"use_l1_regression \(a continuous action head\)"),
        ("use_diffusion", True, r"use_diffusion \(a diffusion head\)"),
        ("use_proprio", True, r"use_proprio \(proprioception\)"),
        ("use_film", True, r"use_film \(FiLM\)"),
        ("num_images_in_input", 2, r"num_images_in_input 2 \(several images\)"),
    ],
)
def test_a_config_that_asks_for_more_than_one_image_and_tokens_is_refused_by_key(folder, key, value, named):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rf"another OpenVLA-OFT.*{named}"):
        SimpleVLAOFT.from_pretrained(folder)


def test_a_config_that_says_it_needs_no_more_is_taken(folder):
    path = folder / "config.json"
    says = {"use_proprio": False, "use_film": False, "use_l1_regression": False, "num_images_in_input": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | says))
    SimpleVLAOFT.from_pretrained(folder)
