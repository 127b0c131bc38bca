"""What data mean is told apart, or asked for."""

import numpy as np
import pytest

from vla_train.demonstrations.conventions import GRIPPERS, Gripper, find_gripper, find_orientation, orient

FINGER = 0.04
"""m from the middle, when open."""


def grasping(gripper: Gripper, *, num_episodes: int = 4, holding: float = 0.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Actions and states of episodes that open, close on something, and open again; fingers move 1 cm per step."""
    actions, states = [], []
    for episode in range(num_episodes):
        rng = np.random.default_rng(episode)
        closes, opens = rng.integers(10, 20), rng.integers(40, 50)
        finger, step_states, step_actions = FINGER, [], []
        for step in range(60):
            closing = closes <= step < opens
            step_states.append([*rng.normal(size=6), finger, -finger])
            step_actions.append([*rng.normal(size=6), gripper.closed if closing else gripper.opened])
            goal = holding if closing else FINGER
            finger += np.clip(goal - finger, -0.01, 0.01)
        actions.append(np.array(step_actions, np.float32))
        states.append(np.array(step_states, np.float32))
    return actions, states


@pytest.mark.parametrize("holding", [0.0, 0.03])
@pytest.mark.parametrize("name", GRIPPERS)
def test_the_gripper_is_told_by_how_the_fingers_follow_it(name: str, holding: float):
    actions, states = grasping(GRIPPERS[name], holding=holding)
    assert find_gripper(actions, states) == GRIPPERS[name]


@pytest.mark.parametrize("name", GRIPPERS)
def test_every_convention_becomes_the_envs(name: str):
    gripper = GRIPPERS[name]
    stored = np.array([gripper.opened, (gripper.opened + gripper.closed) / 2, gripper.closed], np.float32)
    np.testing.assert_array_equal(gripper.to_env(stored), np.array([-1, 0, 1], np.float32))


def test_a_gripper_that_never_moves_or_that_nobody_sees_must_be_stated():
    actions, states = grasping(GRIPPERS["env"])
    with pytest.raises(ValueError, match=r"without states it cannot be told .*say how the gripper is stored \(env: -1 open"):
        find_gripper(actions, None)
    still = [np.where(np.arange(7) == 6, 1.0, episode) for episode in actions]
    with pytest.raises(ValueError, match="the gripper gets one command only"):
        find_gripper(still, states)
    with pytest.raises(ValueError, match="the fingers never move"):
        find_gripper(actions, [np.zeros_like(state) for state in states])
    with pytest.raises(ValueError, match="there are no actions"):
        find_gripper([], [])


def test_states_that_are_no_fingers_and_values_of_no_range_must_be_stated():
    actions, states = grasping(GRIPPERS["env"])
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="the fingers do not follow the gripper's actions"):
        find_gripper(actions, [rng.normal(size=state.shape) for state in states])
    with pytest.raises(ValueError, match=r"lie in -40 .. 40, which is neither -1 .. 1 nor 0 .. 1"):
        find_gripper([40 * action.round() for action in [np.sign(episode) for episode in actions]], states)


def scenes(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Pictures without symmetry, a little different from each other: a room, and something in it that moves."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    room = np.stack([255 * rows, 255 * columns * rows, 120 * (columns > 0.7) + 60 * rows], axis=-1)
    pictures = np.repeat(room[None], count, axis=0)
    for picture in pictures:
        row, column = rng.integers(size // 2, size * 3 // 4, 2)
        picture[row : row + size // 8, column : column + size // 8] = (255, 0, 0)
    return pictures.astype(np.uint8)


@pytest.mark.parametrize("orientation", ["as-is", "rotated", "flipped", "mirrored"])
@pytest.mark.parametrize("size", [256, 84])
def test_pictures_are_told_by_those_of_the_env(orientation: str, size: int):
    reference = scenes(5, 128, seed=1)
    stored = orient(scenes(3, size, seed=2), orientation)  # type: ignore[arg-type]
    found = find_orientation(stored, reference)
    assert found == orientation
    np.testing.assert_array_equal(orient(stored, found), scenes(3, size, seed=2))


def test_pictures_of_something_else_leave_doubt():
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="it cannot be told which way round the pictures are"):
        find_orientation(noise, scenes(5, 64))
    with pytest.raises(ValueError, match="needs at least one picture"):
        find_orientation(noise[:0], scenes(5, 64))
