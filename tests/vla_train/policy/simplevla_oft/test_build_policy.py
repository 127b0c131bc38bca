"""The policy that a run asks for: what is read from a published checkpoint, what is asked for, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from vla_train.policy.simplevla_oft.action_tokens import ActionStatistics
from vla_train.policy.simplevla_oft.prompts import TOKENIZER_FILE
from vla_train.policy.simplevla_oft.small_tokenizer import small_tokenizer


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


def test_the_gripper_convention_is_asked_for_where_nothing_says_it(published, make_policy):
    path = published / "dataset_statistics.json"
    path.write_text(path.read_text().replace("libero_spatial_no_noops", "bridge_orig"))
    with pytest.raises(ValueError, match=r"policy\.gripper"):
        make_policy(checkpoint=str(published))
    assert make_policy(checkpoint=str(published), gripper="none").codec.gripper is None
    assert make_policy(checkpoint=str(published), gripper="libero").codec.gripper == "libero"


@pytest.mark.parametrize(
    ("dataset", "says", "asked", "passes"),
    [
        ("libero_spatial_no_noops", {}, "auto", True),
        ("libero_spatial_no_noops", {}, "off", False),
        ("libero_spatial_no_noops", {"jpeg": False}, "auto", False),
        ("bridge_orig", {}, "auto", False),
        ("bridge_orig", {"jpeg": True}, "auto", True),
        ("bridge_orig", {"jpeg": True}, "off", False),
    ],
)
def test_images_pass_through_jpeg_where_the_checkpoints_data_did(
    dataset, says, asked, passes, published, make_policy, tmp_path
):
    statistics, config = published / "dataset_statistics.json", published / "config.json"
    statistics.write_text(statistics.read_text().replace("libero_spatial_no_noops", dataset))
    config.write_text(json.dumps(json.loads(config.read_text()) | says))
    policy = make_policy(checkpoint=str(published), gripper="libero", jpeg=asked)
    assert policy._images.jpeg == passes
    policy.save_pretrained(str(tmp_path / "saved"))
    again = make_policy(checkpoint=str(tmp_path / "saved"))  # what was asked for or found out is part of what is saved
    assert (again._images.jpeg, again.codec.gripper) == (passes, "libero")


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


def test_statistics_from_bounds_cover_the_bounds():
    statistics = ActionStatistics.from_bounds(np.array([-2.0]), np.array([3.0]))
    np.testing.assert_allclose(statistics.unnormalise(np.array([[-1.0], [0.0], [1.0]])), [[-2.0], [0.5], [3.0]], atol=1e-7)
