"""Goal predicates on hand-made states: every bound that LIBERO's predicates have, and the way into a bundle and back."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_envs.libero.goals import (
    Always,
    Goal,
    GoalInputs,
    InSite,
    JointPast,
    Lifted,
    OnObject,
    OnSite,
    goal_from_json,
    goal_to_json,
)

MOVED, SUPPORT = 0, 1
QUARTER_TURN = np.array([0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])


def states_with(positions: np.ndarray, *, touching: bool = True, site_xmat: np.ndarray | None = None) -> GoalInputs:
    """States of a world with two bodies and a site at the origin; the first body is at `positions` (N, 3)."""
    num_states = len(positions)
    body_xpos = np.zeros((num_states, 2, 3))
    body_xpos[:, MOVED] = positions
    return GoalInputs(
        qpos=np.zeros((num_states, 3)),
        body_xpos=body_xpos,
        site_xpos=np.zeros((num_states, 1, 3)),
        site_xmat=np.tile(np.eye(3).reshape(9) if site_xmat is None else site_xmat, (num_states, 1, 1)),
        touching=np.full((num_states, 1), touching),
    )


def test_an_object_lies_on_another_if_it_touches_it_is_not_lower_and_centres_are_within_three_centimetres():
    on = OnObject(body=MOVED, support=SUPPORT, contact=0)
    positions = np.array([[0, 0, 0.0], [0.029, 0, 0.1], [0, 0.031, 0.1], [0.022, 0.022, 0.1], [0, 0, -0.001]])
    np.testing.assert_array_equal(on.holds(states_with(positions)), [True, True, False, False, False])
    assert not on.holds(states_with(positions, touching=False)).any()


def test_an_object_is_on_a_region_between_just_under_its_top_and_ten_centimetres_above_it():
    on = OnSite(body=MOVED, site=0, size=(0.1, 0.05, 0.01), contact=0)
    heights = np.array([0.0049, 0.0051, 0.1099, 0.1101])
    positions = np.stack([np.zeros(4), np.zeros(4), heights], axis=1)
    np.testing.assert_array_equal(on.holds(states_with(positions)), [False, True, True, False])
    assert not on.holds(states_with(positions, touching=False)).any()
    assert replace(on, contact=-1).holds(states_with(positions, touching=False)).any()


def test_a_region_that_is_turned_has_its_bounds_turned():
    on = OnSite(body=MOVED, site=0, size=(0.1, 0.05, 0.01), contact=0)
    inside = InSite(body=MOVED, site=0, size=(0.1, 0.05, 0.01))
    along_x, along_y = [0.08, 0.0, 0.009], [0.0, 0.08, 0.009]
    for predicate in (on, inside):
        np.testing.assert_array_equal(predicate.holds(states_with(np.array([along_x, along_y]))), [True, False])
        turned = states_with(np.array([along_x, along_y]), site_xmat=QUARTER_TURN)
        np.testing.assert_array_equal(predicate.holds(turned), [False, True])


def test_an_object_is_in_a_region_whose_box_reaches_one_centimetre_lower():
    inside = InSite(body=MOVED, site=0, size=(0.1, 0.1, 0.1))
    positions = np.array([[0, 0, -0.109], [0, 0, -0.111], [0, 0, 0.099], [0, 0, 0.101], [0.101, 0, 0]])
    np.testing.assert_array_equal(inside.holds(states_with(positions)), [True, False, True, False, False])


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        ("<", [True, False, False]),
        ("<=", [True, True, False]),
        (">", [False, False, True]),
        (">=", [False, True, True]),
    ],
)
def test_a_joint_is_past_a_threshold_exactly_where_the_comparison_says(comparison: str, expected: list[bool]):
    past = JointPast(qpos_addresses=(1,), comparison=comparison, threshold=-0.14, every=False)
    states = states_with(np.zeros((3, 3)))
    states.qpos[:, 1] = np.nextafter(-0.14, -1), -0.14, np.nextafter(-0.14, 1)
    np.testing.assert_array_equal(past.holds(states), expected)


def test_of_several_joints_one_must_be_open_but_all_must_be_closed():
    any_open = JointPast(qpos_addresses=(0, 1), comparison=">", threshold=0.5, every=False)
    states = states_with(np.zeros((3, 3)))
    states.qpos[:, :2] = [[1, 0], [1, 1], [0, 0]]
    np.testing.assert_array_equal(any_open.holds(states), [True, True, False])
    np.testing.assert_array_equal(replace(any_open, every=True).holds(states), [False, True, False])


def test_an_object_is_up_from_one_metre_on():
    positions = np.array([[0, 0, 1.0], [0, 0, 0.999]])
    np.testing.assert_array_equal(Lifted(body=MOVED).holds(states_with(positions)), [True, False])


def test_a_goal_holds_where_all_its_predicates_hold():
    low, near = Lifted(body=MOVED), InSite(body=MOVED, site=0, size=(2.0, 2.0, 1.5))
    goal = Goal(predicates=(low, near, Always()), contact_pairs=())
    positions = np.array([[0, 0, 1.2], [0, 0, 0.5], [0, 0, 1.8], [3.0, 0, 1.2]])
    np.testing.assert_array_equal(goal.holds(states_with(positions)), [True, False, False, False])


numbers = st.floats(-3, 3, allow_nan=False)
indices = st.integers(0, 60)
sizes = st.tuples(numbers, numbers, numbers)
predicates = st.one_of(
    st.builds(OnObject, body=indices, support=indices, contact=indices),
    st.builds(OnSite, body=indices, site=indices, size=sizes, contact=st.integers(-1, 60)),
    st.builds(InSite, body=indices, site=indices, size=sizes),
    st.builds(
        JointPast,
        qpos_addresses=st.lists(indices, min_size=1, max_size=3).map(tuple),
        comparison=st.sampled_from(["<", "<=", ">", ">="]),
        threshold=numbers,
        every=st.booleans(),
    ),
    st.builds(Lifted, body=indices),
    st.just(Always()),
)


@given(st.lists(predicates, max_size=4), st.lists(st.tuples(st.lists(indices), st.lists(indices)), max_size=3))
def test_a_goal_survives_json(wanted: list, pairs: list):
    arrays = tuple((np.array(first, np.int32), np.array(second, np.int32)) for first, second in pairs)
    goal = Goal(predicates=tuple(wanted), contact_pairs=arrays)
    again = goal_from_json(json.loads(json.dumps(goal_to_json(goal))))
    assert again.predicates == goal.predicates
    assert len(again.contact_pairs) == len(arrays)
    for mine, theirs in zip(again.contact_pairs, arrays, strict=True):
        for geoms, expected in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(geoms, expected)
            assert geoms.dtype == np.int32
