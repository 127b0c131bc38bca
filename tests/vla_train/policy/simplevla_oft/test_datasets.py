"""Which statistics a run uses, and what datasets say of JPEG and gripper: by name and numbers, or by asking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_train.policy.simplevla_oft.action_tokens import ActionStatistics
from vla_train.policy.simplevla_oft.datasets import covers, gripper_of, passes_jpeg, select_statistics

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


@pytest.mark.parametrize(
    ("dataset", "suites"),
    [
        ("libero_spatial_no_noops", ["libero_spatial"]),
        ("libero_spatial", ["libero_spatial"]),
        ("libero_10_no_noops_1traj", ["libero_10"]),
        ("libero_90_no_noops_trajall", ["libero_90"]),
        ("libero_100", ["libero_10", "libero_90"]),
        ("libero_4_task_suites_no_noops", ["libero_spatial", "libero_object", "libero_goal", "libero_10"]),
        ("libero_130_no_noops_trajall", [*SUITES]),
        ("libero_1", []),
        ("libero_1300_no_noops", []),
        ("bridge_orig", []),
        ("actions", []),
    ],
)
def test_a_dataset_covers_the_suites_whose_demonstrations_it_holds(dataset, suites):
    assert [suite for suite in SUITES if covers(dataset, suite)] == suites


@pytest.mark.parametrize("dataset", ["libero_goal_no_noops", "libero_130_no_noops_trajall", "libero_goal_swap_no_noops"])
def test_a_suite_that_varies_another_is_covered_with_it(dataset):
    assert covers(dataset, "libero_goal_swap")


def test_a_suite_that_varies_another_is_not_covered_with_a_third():
    assert not covers("libero_goal_no_noops", "libero_object_swap")


def test_a_suite_that_is_none_of_liberos_is_covered_by_its_own_name():
    assert covers("kitchen_v2", "kitchen")
    assert not covers("kitchens", "kitchen")
    assert not covers("libero_130_no_noops_trajall", "kitchen")


def choose(*names: str, key: str | None = None, unnorm_key: str | None = None, suite: str | None = None) -> str:
    return select_statistics({name: {} for name in names}, key=key, unnorm_key=unnorm_key, suite=suite)


def test_statistics_are_those_of_the_suite():
    both = ("libero_spatial_no_noops", "libero_10_no_noops")
    assert choose(*both, suite="libero_10") == "libero_10_no_noops"
    assert choose("libero_10", "libero_130_no_noops_trajall", suite="libero_10") == "libero_10"
    assert choose("libero_10_no_noops", "libero_10", suite="libero_10") == "libero_10_no_noops"
    assert choose("libero_goal_no_noops", "libero_130_no_noops", suite="libero_goal_swap") == "libero_goal_no_noops"


@pytest.mark.parametrize("suite", SUITES)
def test_the_statistics_of_all_suites_serve_each(suite):
    assert choose("libero_130_no_noops_trajall", "bridge_orig", suite=suite) == "libero_130_no_noops_trajall"


@pytest.mark.parametrize("name", ["libero_10_no_noops", "libero_90_no_noops_trajall", "bridge_orig", "actions"])
def test_foreign_statistics_are_refused_though_there_are_no_others(name):
    with pytest.raises(ValueError, match=rf"no action statistics of suite libero_spatial, only of {name}.*statistics_key"):
        choose(name, suite="libero_spatial")


def test_foreign_statistics_are_taken_where_the_user_names_them():
    names = ("libero_10_no_noops", "libero_spatial_no_noops")
    assert choose(*names, key="libero_10_no_noops", suite="libero_spatial") == "libero_10_no_noops"


@pytest.mark.parametrize("unnorm_key", ["libero_130_no_noops", "libero_130"])
def test_the_checkpoints_own_choice_wins_over_the_suites_name(unnorm_key):
    names = ("libero_130_no_noops", "libero_10_no_noops")
    assert choose(*names, unnorm_key=unnorm_key, suite="libero_10") == "libero_130_no_noops"


@pytest.mark.parametrize("unnorm_key", ["libero_spatial_no_noops", "nothing_it_has"])
def test_a_choice_that_is_foreign_or_missing_is_passed_over(unnorm_key):
    names = ("libero_spatial_no_noops", "libero_10_no_noops")
    assert choose(*names, unnorm_key=unnorm_key, suite="libero_10") == "libero_10_no_noops"
    with pytest.raises(ValueError, match="no action statistics of suite libero_goal"):
        choose(*names, unnorm_key=unnorm_key, suite="libero_goal")


def test_without_a_suite_the_checkpoints_choice_or_the_only_statistics_serve():
    assert choose("bridge_orig") == "bridge_orig"
    assert choose("a", "b_no_noops", unnorm_key="b") == "b_no_noops"


@pytest.mark.parametrize(
    ("names", "suite"), [(("a", "b"), None), (("libero_10_no_noops_x", "libero_10_no_noops_y"), "libero_10")]
)
def test_several_statistics_that_fit_are_a_question_to_the_user(names, suite):
    with pytest.raises(ValueError, match=rf"policy\.statistics_key; there are {', '.join(names)}"):
        choose(*names, suite=suite)


def test_an_unknown_statistics_key_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'c'.*a, b"):
        choose("a", "b", key="c")


@given(
    st.dictionaries(st.sampled_from([*SUITES, "libero_130", "bridge"]).map(lambda name: f"{name}_no_noops"), st.just({})),
    st.one_of(st.none(), st.sampled_from(["libero_10", "libero_130", "bridge"])),
    st.sampled_from(SUITES),
)
def test_what_is_chosen_unasked_always_covers_the_suite(stats, unnorm_key, suite):
    try:
        chosen = select_statistics(stats, key=None, unnorm_key=unnorm_key, suite=suite)
    except ValueError:
        assert not any(covers(name, suite) for name in stats)
    else:
        assert covers(chosen, suite)


@pytest.mark.parametrize("name", [*SUITES, *(f"{suite}_no_noops" for suite in SUITES), "libero_130_no_noops_trajall"])
def test_images_of_liberos_datasets_were_stored_as_jpeg(name):
    assert passes_jpeg(name)


@pytest.mark.parametrize("name", ["bridge_orig", "fractal20220817_data", "actions", "my_libero_like"])
def test_of_other_datasets_nothing_is_assumed(name):
    assert not passes_jpeg(name)


def gripper(dataset: str, *, stored: tuple[float, float], mask: bool, env: tuple[float, float] = (-1.0, 1.0)) -> str | None:
    """Of an env with seven action dimensions, all others mapped."""
    low, high = np.full(7, -0.9), np.full(7, 0.9)
    low[-1], high[-1] = stored
    statistics = ActionStatistics(low=low, high=high, mask=np.array([True] * 6 + [mask]))
    return gripper_of(dataset, statistics, low=env[0], high=env[1])


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("stored", [(0.0, 1.0), (0.0, 0.9961)])
@pytest.mark.parametrize("dataset", ["libero_spatial_no_noops", "libero_10", "libero_130_no_noops_trajall"])
def test_liberos_gripper_is_known_whatever_the_mask_and_the_name_says(dataset, stored, mask):
    assert gripper(dataset, stored=stored, mask=mask) == "libero"


def test_values_that_are_mapped_to_the_envs_own_are_played_as_decoded():
    assert gripper("libero_10_no_noops", stored=(-1.0, 1.0), mask=True) is None
    assert gripper("my_robot", stored=(0.0, 1.0), mask=True, env=(0.0, 1.0)) is None
    assert gripper("my_robot", stored=(-0.3, 0.4), mask=True) is None


@pytest.mark.parametrize(
    ("dataset", "stored", "mask"),
    [
        ("libero_10_no_noops", (0.0, 0.08), True),
        ("libero_10_no_noops", (-1.0, 0.0), True),
        ("libero_10_no_noops", (-1.0, 1.0), False),
        ("bridge_orig", (0.0, 1.0), True),
        ("bridge_orig", (0.0, 1.0), False),
        ("bridge_orig", (-1.0, 1.0), False),
    ],
)
def test_a_gripper_that_name_and_numbers_leave_in_doubt_is_a_question_to_the_user(dataset, stored, mask):
    with pytest.raises(
        ValueError, match=rf"'{dataset}'.*q01 {stored[0]:g}, q99 {stored[1]:g}, mask.*policy\.gripper to libero"
    ):
        gripper(dataset, stored=stored, mask=mask)
