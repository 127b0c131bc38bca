"""Messages with the real clients and servers, in both directions."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from real_clients import OPENPI, VLA_EVAL, run, start
from served import POLICIES, served_config, serving

from vla_train.config import PolicyConfig
from vla_train.policy.remote.policy import build_policy
from vla_train.types import ArraySpec, EnvDescription, Observation, Place

PICTURE = ArraySpec((48, 48, 3), "uint8")
ENV = EnvDescription(
    observations={"image": PICTURE, "wrist_image": PICTURE, "state": ArraySpec((8,), "float32")},
    action_low=np.full(7, -1, np.float32),
    action_high=np.full(7, 1, np.float32),
    suite="libero_10",
    simulation={"control": "osc_delta"},
)
STATE = np.array([0, 0, 0, 0, 3.6, 0, 0.02, -0.02], np.float32)
"""Turned by more than half a turn."""


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(python: str, program: str, ending: ExitStack, **arguments: Any) -> str:
    """The address of a server that was started."""
    process = start(python, program, **arguments)
    ending.callback(process.wait)
    ending.callback(process.kill)
    assert process.stdout is not None
    return f"ws://127.0.0.1:{json.loads(process.stdout.readline())}"


def seen(episode: int, *values: int, text: str = "close") -> Observation:
    rows = len(values)
    pictures = np.array(values, np.uint8)[:, None, None, None] + np.zeros((rows, 48, 48, 3), np.uint8)
    return Observation(
        arrays={"image": pictures, "wrist_image": pictures, "state": np.tile(STATE, (rows, 1))},
        instructions=(text,) * rows,
        places=tuple(Place(slot=slot, episode=episode, decision=0) for slot in range(rows)),
    )


def test_vla_eval_plays_what_we_serve() -> None:
    values, steps = (51, 102, 204), 6
    with serving(served_config("vla-eval", max_wait_s=0.05)) as url:
        told = run(VLA_EVAL, "vla_eval_plays.py", url=url, values=values, steps=steps)
        batches = POLICIES[-1].batches
    assert told["mismatches"] == []
    assert told["info"]["observation_params"] == {"env_seed": 0}
    assert set(told["actions"]) == {f"{kind} {value}" for kind in ("png", "raw", "jpeg") for value in values}
    for name, actions in told["actions"].items():
        value = int(name.split()[1])
        # Chunks of four, and a new one at the start of the second episode.
        assert [action[2] for action in actions] == 2 * [0, 1, 2, 3, 0, 1]
        np.testing.assert_allclose([action[0] for action in actions], value / 255, atol=1e-6)
    assert max(batches) > 1
    assert ["no episode was started" in told["errors"][0], *(bool(error) for error in told["errors"][1:])] == [
        True,
        True,
        True,
        False,
    ]
    assert "images.agentview must be an array" in told["errors"][2]


@pytest.mark.parametrize("quat_no_antipodal", [True, False])
def test_we_play_what_vla_eval_serves(quat_no_antipodal: bool, ending: ExitStack) -> None:
    params = {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": quat_no_antipodal}
    url = started(VLA_EVAL, "vla_eval_serves.py", ending, params=params, chunk_size=4, max_batch_size=8)
    policy = build_policy(PolicyConfig(factory="remote", url=url, chunk_size=1), ENV, seed=0)
    ending.callback(policy.close)
    turned = 3.6 if quat_no_antipodal else 3.6 - 2 * np.pi
    for episode in range(2):
        for step in range(3):
            actions = policy.act(seen(episode, 51, 102), uniforms=None, temperature=1.0).actions
            expected = [[[value, value, 0, turned / 4, 0, step / 4, 1]] for value in (0.2, 0.4)]
            np.testing.assert_allclose(actions, expected, atol=1e-6)
    opened = policy.act(seen(2, 51, text="open"), uniforms=None, temperature=1.0).actions
    assert opened[0, 0, -1] == -1


def test_our_half_turns_are_those_of_vla_eval() -> None:
    """Its `quat_to_axisangle` against ours, of rotations all round."""
    from vla_train.wire.vla_eval import with_half_turns

    program = (
        "import json, sys; import numpy as np; from vla_eval.rotation import quat_to_axisangle as f;"
        "print(json.dumps([f(np.array(q)).tolist() for q in json.loads(sys.argv[1])]))"
    )
    axes = np.random.default_rng(0).normal(size=(40, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.linspace(0.05, 2 * np.pi - 0.05, 40)
    quaternions = np.concatenate([axes * np.sin(angles / 2)[:, None], np.cos(angles / 2)[:, None]], axis=1)
    out = subprocess.run(
        [VLA_EVAL, "-c", program, json.dumps(quaternions.tolist())], capture_output=True, text=True, check=True
    )
    states = np.zeros((40, 8), np.float32)
    states[:, 3:6] = axes * angles[:, None]
    np.testing.assert_allclose([with_half_turns(state)[3:6] for state in states], json.loads(out.stdout), atol=1e-4)


def test_openpi_plays_what_we_serve() -> None:
    with serving(served_config("openpi", kwargs={"keys": "image,state,instruction"})) as url:
        host, port = url.removeprefix("ws://").split(":")
        told = run(OPENPI, "openpi_plays.py", host=host, port=int(port), horizon=3, steps=7)
    assert told["metadata"]["reads"] == ["observation/image", "observation/state"]
    assert [action[2] for action in told["actions"]] == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_allclose([action[0] for action in told["actions"][::3]], [0, 30 / 255, 60 / 255], atol=1e-6)
    assert "observation must have observation/state, prompt" in told["error"]
    assert told["shape"] == [4, 7]


def test_we_play_what_openpi_packs_and_our_pictures_are_its_own(ending: ExitStack) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    url = started(OPENPI, "openpi_serves.py", ending, image=picture.tolist())
    config = PolicyConfig(factory="remote", url=url, chunk_size=5, kwargs={"protocol": "openpi"})
    policy = build_policy(config, ENV, seed=0)
    ending.callback(policy.close)
    observation = seen(0, 0, 0)
    observation.arrays["image"][:] = observation.arrays["wrist_image"][:] = picture
    actions = policy.act(observation, uniforms=None, temperature=1.0).actions
    expected = [[1, 1, number / 10, 3.6 / 4, 0, 0, 0.05] for number in range(5)]
    np.testing.assert_allclose(actions, [expected, expected], atol=1e-6)
