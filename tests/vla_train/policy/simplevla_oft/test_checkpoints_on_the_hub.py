"""Checkpoints on the hub, with a hub of these tests' own: a folder per name, and a connection that can be cut."""

import fnmatch
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.build import check_options
from vla_train.policy.simplevla_oft.hub import hub_file_names


class Hub:
    """`owner/name` is a folder of that name; what was fetched is kept."""

    def __init__(self, root: Path) -> None:
        self.root, self.kept = root / "hub", root / "kept"
        self.connected = True
        self.fetched: list[str] = []

    def upload(self, hub_id: str, folder: Path, *extra: str) -> None:
        shutil.copytree(folder, self.root / hub_id)
        for name in extra:
            (self.root / hub_id / name).parent.mkdir(exist_ok=True)
            (self.root / hub_id / name).write_bytes(b"weights")

    def model_info(self, hub_id: str, *, timeout: float) -> SimpleNamespace:
        if not self.connected:
            raise HfHubHTTPError.__bases__[0]("no connection")
        if not (self.root / hub_id).is_dir():
            raise OSError(f"404: no {hub_id}\nRequest ID: 1")
        files = [path for path in (self.root / hub_id).rglob("*") if path.is_file()]
        names = [path.relative_to(self.root / hub_id).as_posix() for path in files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, hub_id: str, *, allow_patterns: list[str]) -> str:
        target = self.kept / hub_id
        if self.connected:
            target.mkdir(parents=True, exist_ok=True)
            for file in self.model_info(hub_id, timeout=1).siblings:
                if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in allow_patterns):
                    shutil.copy(self.root / hub_id / file.rfilename, target)
                    self.fetched.append(file.rfilename)
        elif not target.exists():
            raise LocalEntryNotFoundError("no connection, and nothing was fetched before")
        return str(target)

    def try_to_load_from_cache(self, hub_id: str, name: str) -> str | None:
        file = self.kept / hub_id / name
        return str(file) if file.exists() else None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", hub.try_to_load_from_cache)
    return hub


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
