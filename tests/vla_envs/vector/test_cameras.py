"""What the options of cameras mean, and what is refused, without drawing."""

from typing import Any

import numpy as np
import pytest

from vla_envs.vector.cameras import CAMERAS, Camera, DrawnCamera, drawn_cameras

TOP = Camera(name="top", position=(0.2, 0.3, 2.0), target=(0.0, 0.0, 0.9))


def test_each_camera_has_its_size_and_says_what_else_it_draws():
    cameras = drawn_cameras(
        ["robot0_eye_in_hand", TOP, "birdview"],
        image_size={"wrist": 64, "top": (48, 96), "birdview": [32, 40]},
        depth=["robot0_eye_in_hand"],
        segmentation=("top", "wrist"),
    )
    assert cameras == (
        DrawnCamera(name="wrist", height=64, width=64, depth=True, segmentation=True),
        DrawnCamera(name="top", height=48, width=96, own=TOP, segmentation=True),
        DrawnCamera(name="birdview", height=32, width=40),
    )


def test_one_size_is_that_of_all_cameras_and_one_number_is_height_and_width():
    for image_size, expected in ((64, (64, 64)), ((48, 96), (48, 96)), (np.int64(32), (32, 32))):
        sizes = {(camera.height, camera.width) for camera in drawn_cameras(CAMERAS, image_size=image_size)}
        assert sizes == {expected}


def test_a_camera_is_also_given_as_a_mapping():
    """As JSON and the command line have it."""
    given = {"name": "top", "position": [0.2, 0.3, 2.0], "target": [0.0, 0.0, 0.9], "quaternion": None, "fovy_deg": 45.0}
    assert drawn_cameras([given]) == drawn_cameras([TOP])
    with pytest.raises(ValueError, match=r"a Camera cannot be made of .*unexpected keyword argument 'size'"):
        drawn_cameras([given | {"size": 3}])


def test_a_target_is_in_the_middle_with_the_worlds_z_upwards():
    right, up, backwards = TOP.rotation.T
    np.testing.assert_allclose(TOP.rotation.T @ TOP.rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(TOP.rotation) == pytest.approx(1.0)
    ahead = np.subtract(TOP.target, TOP.position)
    np.testing.assert_allclose(-backwards, ahead / np.linalg.norm(ahead))
    assert right[2] == 0.0
    assert up[2] > 0.0


def test_a_quaternion_need_not_be_of_unit_length():
    down = Camera(name="down", position=(0, 0, 2), quaternion=(3, 0, 0, 0))
    np.testing.assert_array_equal(down.rotation, np.eye(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two words"}, "a camera's name must be a word of letters, digits and '_', got 'two words'"),
        ({"name": "wrist"}, "'wrist' is a camera of LIBERO: give yours another name"),
        ({"name": "robot0_eye_in_hand"}, "is a camera of LIBERO"),
        ({"position": (0, 0)}, r"position of camera 'top' must be 3 finite numbers, got \(0, 0\)"),
        ({"position": "here"}, "position of camera 'top' must be 3 finite numbers, got 'here'"),
        ({"target": (0, 0, np.nan)}, "target of camera 'top' must be 3 finite numbers"),
        ({"target": None}, "camera 'top' needs a target or a quaternion, one of them"),
        ({"quaternion": (1, 0, 0, 0)}, "needs a target or a quaternion, one of them"),
        ({"target": None, "quaternion": (0, 0, 0, 0)}, "the quaternion of camera 'top' must not be 0"),
        ({"target": (0.2, 0.3, 0.9)}, r"straight above or below it: give a quaternion instead; \(1, 0, 0, 0\) looks down"),
        ({"fovy_deg": 180}, "fovy_deg of camera 'top' must be between 0 and 180, got 180"),
        ({"fovy_deg": "wide"}, "fovy_deg of camera 'top' must be between 0 and 180, got 'wide'"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Camera(**({"name": "top", "position": TOP.position, "target": TOP.target} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cameras": ("wrist", "robot0_eye_in_hand")}, "each once"),
        ({"cameras": (TOP, TOP)}, "each once"),
        ({"cameras": [["wrist"]]}, r"cameras must be any of \('agentview', .*\) or a Camera of your own"),
        ({"cameras": (), "image_size": 4}, "image_size must be an integer of at least 8"),
        ({"image_size": (32,)}, r"two \(height, width\), .* got \(32,\)"),
        ({"image_size": (32, True)}, "image_size must be an integer"),
        ({"image_size": "32"}, "got '32'"),
        ({"image_size": {"agentview": 32, "wrist": 32}}, r"a size for each of the env's cameras \('agentview',\), got"),
        ({"image_size": {"agentview": (32, 4)}}, "image_size must be an integer"),
        ({"depth": ("agentview", "agentview")}, "depth must name any of .* each once"),
        ({"segmentation": [3]}, r"segmentation must name any of .* got \[3\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        drawn_cameras(**({"cameras": ("agentview",)} | arguments))
