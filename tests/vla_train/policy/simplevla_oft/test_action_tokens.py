import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_train.policy.simplevla_oft.action_tokens import (
    ActionCodec,
    ActionStatistics,
    token_ids_from_values,
    values_from_token_ids,
)

_LLAMA = {"vocab_end": 32000, "num_bins": 256}
_vocabularies = st.builds(
    lambda num_bins, rest: {"vocab_end": num_bins + rest, "num_bins": num_bins}, st.integers(2, 300), st.integers(0, 40000)
)


@given(_vocabularies, st.data())
def test_a_token_decodes_and_encodes_to_itself_but_for_the_one_id_that_shares_its_bin(vocabulary, data):
    last = vocabulary["vocab_end"]
    ids = np.array(data.draw(st.lists(st.integers(last - vocabulary["num_bins"], last - 1), min_size=1, max_size=20)))
    again = token_ids_from_values(values_from_token_ids(ids, **vocabulary), **vocabulary)
    assert np.array_equal(again, np.maximum(ids, last - vocabulary["num_bins"] + 1))


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1, 1)), _vocabularies)
def test_a_value_comes_back_within_half_a_bin(values, vocabulary):
    width = 2 / (vocabulary["num_bins"] - 1)
    ids = token_ids_from_values(values, **vocabulary)
    assert np.abs(values_from_token_ids(ids, **vocabulary) - values).max() <= width / 2 + 1e-12


@given(hnp.arrays(np.float64, 8, elements=st.floats(-3, 3)))
def test_larger_values_have_smaller_ids_and_values_outside_are_clipped(values):
    ids = token_ids_from_values(np.sort(values), **_LLAMA)
    assert (np.diff(ids) <= 0).all()
    assert ids.min() >= 31744
    assert ids.max() <= 31999
    assert np.array_equal(ids, token_ids_from_values(np.clip(np.sort(values), -1, 1), **_LLAMA))


def test_the_ends_of_the_range_have_the_published_ids():
    assert token_ids_from_values(np.array([-1.0, 1.0]), **_LLAMA).tolist() == [31999, 31744]
    np.testing.assert_allclose(
        values_from_token_ids(np.array([31999, 31745, 31744]), **_LLAMA), [-1 + 1 / 255, 254 / 255, 254 / 255]
    )


@pytest.mark.parametrize("token_id", [31743, 32000])
def test_an_id_that_is_no_action_token_is_refused(token_id):
    with pytest.raises(ValueError, match=r"31744\.\.31999"):
        values_from_token_ids(np.array([31800, token_id]), **_LLAMA)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        token_ids_from_values(np.array([0.0, np.nan]), **_LLAMA)


_bounds = hnp.arrays(np.float64, 3, elements=st.floats(-5, 5))


@given(
    _bounds, hnp.arrays(np.float64, 3, elements=st.floats(0.01, 5)), hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 1))
)
def test_normalising_undoes_unnormalising(low, span, where):
    statistics = ActionStatistics(low=low, high=low + span, mask=np.array([True, False, True]))
    actions = low + span * where
    actions[:, 1] = where[:, 1]
    np.testing.assert_allclose(statistics.unnormalise(statistics.normalise(actions)), actions, atol=1e-7)


def _codec(gripper, mask_last: bool = False) -> ActionCodec:
    statistics = ActionStatistics(
        low=np.array([-0.5, -2.0, 0.0]), high=np.array([1.5, 2.0, 1.0]), mask=np.array([True, True, mask_last])
    )
    return ActionCodec(statistics=statistics, gripper=gripper, chunk_size=2, **_LLAMA)


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_tokens_of_a_codec_come_back_as_the_same_actions(num_rows, seed):
    codec = _codec(None)
    actions = codec.decode(np.random.default_rng(seed).integers(31744, 32000, (num_rows, 6)))
    np.testing.assert_allclose(codec.decode(codec.encode(actions)), actions, atol=1e-6)


@pytest.mark.parametrize(("stored", "played"), [(1.0, -1.0), (0.9, -1.0), (0.1, 1.0), (-1.0, 1.0)])
def test_liberos_gripper_is_stored_as_open_one_and_played_as_close_plus_one(stored, played):
    codec = _codec("libero")
    token = token_ids_from_values(np.array([stored]), **_LLAMA)[0]
    token_ids = np.full((1, 6), 31872)
    token_ids[:, [2, 5]] = token
    assert codec.decode(token_ids)[0, :, -1].tolist() == [played, played]


def test_liberos_gripper_survives_a_round_trip():
    codec = _codec("libero")
    actions = np.zeros((2, 2, 3))
    actions[..., -1] = [[1, -1], [-1, 1]]
    assert np.array_equal(codec.decode(codec.encode(actions))[..., -1], actions[..., -1])


def test_without_a_convention_the_gripper_keeps_its_value():
    assert np.abs(_codec(None).decode(np.full((1, 6), 31872))[..., -1]).max() < 0.01


def test_actions_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 2, 3\)"):
        _codec(None).encode(np.zeros((1, 3, 3)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "'suite_x' have no 'action'"),
        ("text", "'suite_x' have no 'action'"),
        ({"action": {"q01": [0]}}, "'suite_x'.*'q99'"),
        ({"action": {"q01": [0, 1], "q99": [1]}}, "'suite_x'.*shapes"),
        ({"action": {"q01": [0], "q99": [float("nan")]}}, "'suite_x'.*finite"),
    ],
)
def test_broken_statistics_are_refused_by_name_and_key(data, message):
    with pytest.raises(ValueError, match=message):
        ActionStatistics.from_json(data, name="suite_x")


def test_unbounded_actions_are_refused():
    with pytest.raises(ValueError, match="bounded"):
        ActionStatistics.from_bounds(np.array([-np.inf]), np.array([1.0]))
