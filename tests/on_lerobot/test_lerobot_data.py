"""What `collect` writes trains LeRobot's policies, and what LeRobot writes feeds `sft`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from vla_train import DemonstrationDataset
from vla_train.cli import main
from vla_train.run.tracking import read_records

NAMES = {"image": "image", "wrist_image": "image2"}
"""Our cameras, and what LeRobot's LIBERO sets call them."""


def test_lerobot_train_learns_from_what_was_collected_and_evaluates_in_our_env(
    collected: Path, act_options: dict[str, object], lerobot_command: Callable[..., str], tmp_path: Path
):
    output = tmp_path / "run"
    lerobot_command(
        "lerobot-train",
        **{f"policy.{name}": value for name, value in {"type": "act", **act_options}.items()},
        **{"dataset.repo_id": "own/collected", "dataset.root": collected, "output_dir": output},
        **{"steps": 2, "batch_size": 2, "num_workers": 0, "save_freq": 2, "env_eval_freq": 2},
        **{"eval.n_episodes": 2, "eval.batch_size": 2, "env.episode_length": 4, "env.task_ids": [0]},
        **{"env.camera_name_mapping": {"robot0_eye_in_hand_image": "wrist_image"}},
    )
    assert (output / "checkpoints" / "000002" / "pretrained_model" / "model.safetensors").exists()
    assert len(list(output.rglob("eval_episode_*.mp4"))) == 2


@pytest.fixture(params=["image", "video"])
def written(request: pytest.FixtureRequest, collected: Path, tmp_path: Path) -> Path:
    """The collected demonstrations, written by LeRobot in the layout of its LIBERO sets, which say 10 frames per second."""
    source = DemonstrationDataset(collected)
    numbers = {"observation.state": source.state_dim, "action": source.action_dim}
    features = {name: {"dtype": "float32", "shape": (dim,), "names": None} for name, dim in numbers.items()}
    for ours, theirs in NAMES.items():
        shape = source.image_shapes[ours]
        features[f"observation.images.{theirs}"] = {
            "dtype": request.param,
            "shape": shape,
            "names": ["height", "width", "channel"],
        }
    folder = tmp_path / "written"
    dataset = LeRobotDataset.create(
        "own/libero", fps=10, features=features, root=folder, robot_type="panda", use_videos=request.param == "video"
    )
    for number, episode in enumerate(source.episodes):
        pictures = {theirs: source.images(number, ours, range(episode.length)) for ours, theirs in NAMES.items()}
        for step in range(episode.length):
            frame = {f"observation.images.{name}": frames[step] for name, frames in pictures.items()}
            frame |= {"observation.state": source.states(number)[step], "action": source.actions(number)[step]}
            dataset.add_frame(frame | {"task": episode.task})
        dataset.save_episode()
    dataset.finalize()
    return folder


def test_what_lerobot_writes_is_read_and_taught(written: Path, collected: Path, tmp_path: Path):
    ours, theirs = DemonstrationDataset(collected), DemonstrationDataset(written)
    assert (theirs.image_keys, theirs.fps, theirs.robot_type) == (tuple(NAMES.values()), 10, "panda")
    assert [(e.task, e.length) for e in theirs.episodes] == [(e.task, e.length) for e in ours.episodes]
    lossless = not list(written.rglob("*.mp4"))
    for number, episode in enumerate(ours.episodes):
        np.testing.assert_array_equal(theirs.actions(number), ours.actions(number))
        np.testing.assert_array_equal(theirs.states(number), ours.states(number))
        for mine, name in NAMES.items():
            frames = [dataset.images(number, key, range(episode.length)) for dataset, key in ((ours, mine), (theirs, name))]
            apart = np.abs(np.subtract(*frames, dtype=np.float64)).mean(axis=(1, 2, 3))
            assert apart.max() <= (0 if lossless else 8)
    env = [
        "--env.kwargs",
        "suite=libero_spatial",
        "task_ids=[0]",
        "image_size=84",
        "detail=fast",
        "--env.max-episode-steps",
        "8",
    ]
    small = ["--steps", "3", "--batch-rows", "4", "--optim.microbatch-rows", "4", "--log-every", "1", "--eval.every", "0"]
    main(["sft", "--data", str(written), "--output", str(tmp_path / "sft"), "--fps", "20", *env, *small])
    losses = [record["update/loss"] for record in read_records(tmp_path / "sft", "iteration")]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
