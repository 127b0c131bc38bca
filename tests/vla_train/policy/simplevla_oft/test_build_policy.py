"""The policy that a run asks for: what is read from a published checkpoint, what is asked for, and what is refused."""

import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft.action_tokens import ActionStatistics
from vla_train.policy.simplevla_oft.build import build_policy
from vla_train.policy.simplevla_oft.prompts import TOKENIZER_FILE
from vla_train.policy.simplevla_oft.small_tokenizer import small_tokenizer
from vla_train.types import ArraySpec, EnvDescription


@pytest.fixture
def published(golden_folder, tmp_path):
    """The golden checkpoint with a tokenizer, as a published one looks: without keys of our own."""
    folder = tmp_path / "published"
    shutil.copytree(golden_folder, folder, ignore=lambda *_: ["README.md", "cases.npz"])
    (folder / TOKENIZER_FILE).write_text(small_tokenizer().to_str())
    return folder


def test_a_published_checkpoint_decides_for_libero(published, make_policy, make_observation):
    policy = make_policy(checkpoint=str(published), suite="libero_spatial")
    uniforms = np.random.default_rng(1).random((3, policy.chunk_size * policy.action_dim), dtype=np.float32)
    output = policy.act(make_observation(3), uniforms=uniforms, temperature=1.6)
    assert set(np.unique(output.actions[..., -1])) <= {-1.0, 1.0}
    statistics = json.loads((published / "dataset_statistics.json").read_text())["libero_spatial_no_noops"]["action"]
    assert (output.actions[..., :6] >= np.array(statistics["q01"][:6]) - 1e-6).all()
    assert (output.actions[..., :6] <= np.array(statistics["q99"][:6]) + 1e-6).all()


@pytest.mark.parametrize("spec", [ArraySpec((3, 8, 8), "uint8"), ArraySpec((8, 8, 3), "float32"), ArraySpec((8, 8), "uint8")])
def test_images_that_it_does_not_read_are_refused_before_anything_is_built(published, spec):
    bound = np.ones(7, np.float32)
    env = EnvDescription(observations={"image": spec}, action_low=-bound, action_high=bound, suite="libero_spatial")
    with pytest.raises(ValueError, match=r"reads images of uint8 \(H, W, 3\), the env observes (uint8|float32) \("):
        build_policy(PolicyConfig(checkpoint=str(published)), env, seed=0)


def test_statistics_of_the_suite_are_taken_among_several(published, make_policy):
    path = published / "dataset_statistics.json"
    stats = json.loads(path.read_text())
    other = json.loads(json.dumps(stats["libero_spatial_no_noops"]))
    other["action"]["q99"] = [2.0] * 6 + [1.0]
    path.write_text(json.dumps(stats | {"libero_10_no_noops": other}))
    policy = make_policy(checkpoint=str(published), suite="libero_10")
    assert policy.codec.statistics.high.tolist() == [2.0] * 6 + [1.0]
    with pytest.raises(ValueError, match=r"policy\.statistics_key"):
        make_policy(checkpoint=str(published), suite="libero_90")


def test_statistics_of_another_suite_are_taken_only_where_they_are_named(published, make_policy):
    with pytest.raises(ValueError, match=r"no action statistics of suite libero_10, only of libero_spatial_no_noops.*_key"):
        make_policy(checkpoint=str(published), suite="libero_10")
    policy = make_policy(checkpoint=str(published), suite="libero_10", statistics_key="libero_spatial_no_noops")
    assert policy.model.config.unnorm_key == "libero_spatial_no_noops"


@pytest.fixture
def rename(published) -> Callable[..., None]:
    """Gives the statistics other names, all with the same numbers but for the gripper's."""

    def rename(*names: str, mask: bool = False, low: float = 0.0, high: float = 1.0) -> None:
        path = published / "dataset_statistics.json"
        (stats,) = json.loads(path.read_text()).values()
        action = stats["action"]
        action["mask"][-1], action["q01"][-1], action["q99"][-1] = mask, low, high
        path.write_text(json.dumps(dict.fromkeys(names, stats)))

    return rename


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "dataset_statistics.json"])
def test_the_checkpoints_own_choice_of_statistics_is_taken(file, published, rename, make_policy, tmp_path):
    rename("libero_spatial_no_noops", "libero_130_no_noops_trajall")
    path = published / file
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(data | {"unnorm_key": "libero_130_no_noops_trajall"}))
    policy = make_policy(checkpoint=str(published))
    assert policy.model.config.unnorm_key == "libero_130_no_noops_trajall"
    assert set(policy.model.config.norm_stats) == {"libero_spatial_no_noops", "libero_130_no_noops_trajall"}
    policy.save_pretrained(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["unnorm_key"] == "libero_130_no_noops_trajall"


def test_a_choice_of_statistics_that_names_nothing_is_refused_by_key(published, make_policy):
    (published / "generation_config.json").write_text(json.dumps({"unnorm_key": ["libero_10"]}))
    with pytest.raises(ValueError, match=r"unnorm_key must name a dataset, got \['libero_10'\]"):
        make_policy(checkpoint=str(published))


def test_the_gripper_convention_is_asked_for_where_nothing_says_it(published, rename, make_policy):
    rename("bridge_orig")
    with pytest.raises(ValueError, match=r"policy\.gripper"):
        make_policy(checkpoint=str(published), statistics_key="bridge_orig")
    for asked, gripper in (("none", None), ("libero", "libero")):
        policy = make_policy(checkpoint=str(published), statistics_key="bridge_orig", gripper=asked)
        assert policy.codec.gripper == gripper


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("dataset", ["libero_spatial_no_noops", "libero_130_no_noops_trajall", "libero_spatial"])
def test_a_libero_gripper_opens_and_closes_whatever_the_mask_says(dataset, mask, published, rename, make_policy):
    rename(dataset, mask=mask)
    codec = make_policy(checkpoint=str(published)).codec
    first = codec.vocab_end - codec.num_bins
    played = codec.decode(np.repeat([[first], [codec.vocab_end - 1]], codec.chunk_size * codec.action_dim, axis=1))
    assert (played[..., -1] == [[-1.0], [1.0]]).all(), "stored 1 is played as open (-1), stored 0 as close (+1)"


@pytest.mark.parametrize(
    ("dataset", "says", "asked", "passes"),
    [
        ("libero_spatial_no_noops", {}, "auto", True),
        ("libero_spatial", {}, "auto", True),
        ("libero_130_no_noops_trajall", {}, "auto", True),
        ("libero_spatial_no_noops", {}, "off", False),
        ("libero_spatial_no_noops", {"jpeg": False}, "auto", False),
        ("bridge_orig", {}, "auto", False),
        ("bridge_orig", {"jpeg": True}, "auto", True),
        ("bridge_orig", {"jpeg": True}, "off", False),
    ],
)
def test_images_pass_through_jpeg_where_the_checkpoints_data_did(
    dataset, says, asked, passes, published, rename, make_policy, tmp_path
):
    rename(dataset)
    config = published / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | says))
    policy = make_policy(checkpoint=str(published), statistics_key=dataset, gripper="libero", jpeg=asked)
    assert policy._images.jpeg == passes
    policy.save_pretrained(str(tmp_path / "saved"))
    # What was asked for or found out is part of what is saved.
    again = make_policy(checkpoint=str(tmp_path / "saved"), statistics_key=dataset)
    assert (again._images.jpeg, again.codec.gripper) == (passes, "libero")


@pytest.mark.parametrize(
    ("says", "asked", "path", "jpeg"),
    [
        ({}, {}, "openvla", True),
        ({"images": "rlinf"}, {}, "rlinf", False),
        ({"images": "rlinf"}, {"images": "openvla"}, "openvla", True),
        ({"images": "openvla", "jpeg": False}, {}, "openvla", False),
        ({}, {"images": "rlinf"}, "rlinf", False),
        ({"jpeg": True}, {"images": "rlinf"}, "rlinf", False),
        ({"add_value_head": False}, {}, "rlinf", False),
        ({"add_value_head": False}, {"images": "openvla"}, "openvla", True),
        ({"add_value_head": False, "jpeg": True}, {}, "openvla", True),
        ({"images": "rlinf", "jpeg": False}, {"images": "openvla"}, "openvla", True),
        ({}, {"images": "openvla", "jpeg": "off"}, "openvla", False),
    ],
    ids=str,
)
def test_images_are_prepared_as_asked_as_said_or_as_the_trainer_did(
    says, asked, path, jpeg, published, rename, make_policy, tmp_path
):
    rename("libero_spatial_no_noops")
    config = published / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | says))
    policy = make_policy(checkpoint=str(published), **asked)
    assert (policy._images.path, policy._images.jpeg) == (path, jpeg)
    assert policy.crop_area == (1.0 if path == "rlinf" else 0.9)
    policy.save_pretrained(str(tmp_path / "saved"))
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["images"], saved["jpeg"]) == (path, jpeg)
    assert make_policy(checkpoint=str(tmp_path / "saved"))._images == policy._images


@pytest.mark.parametrize(
    ("says", "options", "message"),
    [
        ({"images": "raw"}, {}, "images must be one of openvla, rlinf, got 'raw'"),
        ({"images": "rlinf"}, {"jpeg": "on"}, r"policy\.jpeg on contradicts the images of .*rlinf.*policy\.images openvla"),
        ({}, {"images": "rlinf", "jpeg": "on"}, r"policy\.jpeg on contradicts policy\.images rlinf"),
    ],
)
def test_images_that_contradict_each_other_are_refused(says, options, message, published, make_policy):
    config = published / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | says))
    with pytest.raises(ValueError, match=message):
        make_policy(checkpoint=str(published), **options)


def test_random_weights_play_actions_as_decoded(make_policy, tmp_path):
    policy = make_policy()
    assert policy.codec.gripper is None
    policy.save_pretrained(str(tmp_path))
    assert make_policy(checkpoint=str(tmp_path)).codec.gripper is None


@pytest.mark.parametrize(
    ("remove", "message"),
    [(TOKENIZER_FILE, r"tokenizer\.json"), ("dataset_statistics.json", r"dataset_statistics\.json is missing")],
)
def test_a_checkpoint_without_tokenizer_or_statistics_is_refused_by_file(published, make_policy, remove, message):
    (published / remove).unlink()
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | {"norm_stats": {}}))
    with pytest.raises(ValueError, match=message):
        make_policy(checkpoint=str(published))


def test_a_damaged_image_config_is_refused_by_file(published, make_policy):
    (published / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not valid JSON"):
        make_policy(checkpoint=str(published))


def test_a_checkpoint_that_does_not_fit_run_or_env_is_refused(published, make_policy):
    with pytest.raises(ValueError, match=r"policy\.chunk_size is 4, the checkpoint decides 8"):
        make_policy(checkpoint=str(published), chunk_size=4)
    with pytest.raises(ValueError, match="the env has 3 action dimensions"):
        make_policy(checkpoint=str(published), action_dim=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "libero_10"}, "no action statistics of suite libero_10"),
        ({"statistics_key": "nothing"}, r"statistics_key 'nothing'"),
        ({"chunk_size": 4}, "chunk_size is 4"),
        ({"action_dim": 3}, "3 action dimensions"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(options, message, published, make_policy):
    (published / "model.safetensors").write_bytes(b"reading this is an error of its own")
    with pytest.raises(ValueError, match=message):
        make_policy(checkpoint=str(published), **options)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        make_policy(checkpoint=str(published))


def test_statistics_from_bounds_cover_the_bounds():
    statistics = ActionStatistics.from_bounds(np.array([-2.0]), np.array([3.0]))
    np.testing.assert_allclose(statistics.unnormalise(np.array([[-1.0], [0.0], [1.0]])), [[-2.0], [0.5], [3.0]], atol=1e-7)
