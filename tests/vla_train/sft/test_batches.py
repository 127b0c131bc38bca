"""The rows of a step: the right images and labels, the same on any number of ranks, padding left out where asked for."""

from pathlib import Path

import numpy as np
import pytest
from reach_demonstrations import ACTIONS, UNVARIED, sft_config, write_reach_demonstrations

from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.policy.simplevla_oft.action_tokens import ActionCodec, ActionStatistics
from vla_train.sft import batches
from vla_train.sft.batches import BatchMaker
from vla_train.sft.config import AugmentConfig
from vla_train.sft.samples import sample_places, samples_of_step
from vla_train.trainer.parallel import Ranks


class Labels:
    """As much of a policy as rows take: its labels are the actions themselves."""

    chunk_size, action_dim = 4, 2
    observation_keys = ("image", "instruction")
    crop_area = 0.9

    def targets(self, actions: np.ndarray, *, label_step: float) -> dict[str, np.ndarray]:
        return {"actions": actions}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationDataset:
    return DemonstrationDataset(write_reach_demonstrations(tmp_path_factory.mktemp("data") / "reach"))


def make_batches(data: DemonstrationDataset, ranks: Ranks | None = None, **changes) -> BatchMaker:
    config = sft_config(data.folder, Path("unused"), Path("unused"), **{"augment": UNVARIED, **changes})
    places = sample_places(data.episodes, [0, 1, 2], stride=1)
    held_out = sample_places(data.episodes, [3], stride=1)
    return BatchMaker(config, data=data, policy=Labels(), train=places, validation=held_out, ranks=ranks or Ranks())


def test_rows_hold_the_image_the_instruction_and_the_actions_that_followed(data: DemonstrationDataset) -> None:
    batch = make_batches(data).of_step(1)
    places = sample_places(data.episodes, [0, 1, 2], stride=1)
    numbers = samples_of_step(1, num_samples=18, batch_rows=8, seed=0)
    assert len(batch) == 8
    for row, (episode, step) in enumerate(places[numbers]):
        np.testing.assert_array_equal(batch.observations["image"][row], data.images(int(episode), "image", [int(step)])[0])
        wanted = ACTIONS[np.minimum(step + np.arange(4), len(ACTIONS) - 1)]
        np.testing.assert_array_equal(batch.decisions["actions"][row], wanted)
    assert set(batch.instructions) == {"go to the right"}
    np.testing.assert_allclose(batch.weights, 1 / 32)
    assert set(batch.advantages) == {1.0}


def test_padding_that_is_left_out_has_weight_0_and_the_rest_sums_to_1(data: DemonstrationDataset) -> None:
    batch = make_batches(data, padding="ignore").of_step(0)
    steps = sample_places(data.episodes, [0, 1, 2], stride=1)[samples_of_step(0, num_samples=18, batch_rows=8, seed=0)][:, 1]
    np.testing.assert_array_equal(batch.weights > 0, steps[:, None] + np.arange(4) < len(ACTIONS))
    assert batch.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("padding", ["last-action", "ignore"])
def test_ranks_share_the_rows_that_one_would_have(data: DemonstrationDataset, padding: str) -> None:
    changes = {"padding": padding, "augment": sft_config(data.folder, Path("x"), Path("x")).augment}
    whole = make_batches(data, **changes).of_step(5)
    parts = [make_batches(data, Ranks(rank=rank, size=2), **changes).of_step(5) for rank in (0, 1)]
    for name in ("weights", "advantages"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    images = np.concatenate([part.observations["image"] for part in parts])
    np.testing.assert_array_equal(images, whole.observations["image"])
    assert not np.array_equal(images, make_batches(data, padding=padding).of_step(5).observations["image"])


def test_however_many_rows_a_thread_makes_at_a_time_a_step_has_the_same_ones(
    data: DemonstrationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = [make_batches(data, augment=AugmentConfig(), batch_rows=12) for _ in range(2)]
    expected = makers[0].of_step(3)
    monkeypatch.setattr(batches, "_ROWS_AT_ONCE", 5)
    rows = makers[1].of_step(3)
    np.testing.assert_array_equal(rows.observations["image"], expected.observations["image"])
    assert len(rows.observations["image"]) == 12
    assert rows.instructions == expected.instructions


def test_a_validation_looks_at_the_same_rows_each_time_and_never_varies_them(data: DemonstrationDataset) -> None:
    batch = make_batches(data, augment=sft_config(data.folder, Path("x"), Path("x")).augment).of_validation()
    assert batch is not None
    np.testing.assert_array_equal(batch.observations["image"], data.images(3, "image", range(6)))
    few = make_batches(data, validation_rows=2).of_validation()
    assert few is not None
    np.testing.assert_array_equal(few.observations["image"], data.images(3, "image", [0, 5]))


def test_labels_are_rounded_where_asked_for_and_decode_to_within_half_a_bin() -> None:
    bounds = ActionStatistics.from_bounds(np.array([-2.0, -1.0]), np.array([2.0, 1.0]))
    codec = ActionCodec(statistics=bounds, gripper=None, chunk_size=3, vocab_end=1000, num_bins=256)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 3, 2)) * (2, 1)
    coarse = codec.decode(codec.encode(actions, step=0.25))
    assert np.abs(coarse / (2, 1) - np.round(actions / (2, 1) / 0.25) * 0.25).max() < 1 / 128
    assert np.abs(codec.decode(codec.encode(actions)) / (2, 1) - actions / (2, 1)).max() < 1 / 128
