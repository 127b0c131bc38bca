"""What an evaluation's rate means is printed, written down, and never said to be what it is not."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_runs import CHUNK_SIZE

from vla_train.config import EnvConfig, EvalConfig, EvaluateConfig, PolicyConfig
from vla_train.envs.factory import make_env_shard
from vla_train.evaluation import played as module
from vla_train.evaluation.of_checkpoint import CheckpointEvaluation
from vla_train.evaluation.played import Played, played
from vla_train.pipeline.episodes import evaluation_plan
from vla_train.protocols import NUM_TASKS, with_protocol
from vla_train.types import IMAGE, ArraySpec, EnvDescription

FULL = {"engine": "mujoco", "detail": "full", "settle_steps": 10, "control": "osc_delta"}
OPENVLA = {"images": "openvla", "jpeg": True, "statistics": "libero_10_no_noops", "gripper": "libero"}
RLINF = {**OPENVLA, "images": "rlinf", "jpeg": False}


def libero(**changes: Any) -> EnvDescription:
    bound = np.ones(7, np.float32)
    states = dict.fromkeys(range(10), 50)
    env = EnvDescription(
        observations={IMAGE: ArraySpec((256, 256, 3), "uint8")},
        action_low=-bound,
        action_high=bound,
        task_ids=tuple(states),
        num_init_states=states,
        suite="libero_10",
        max_episode_steps=512,
        simulation=FULL,
    )
    return replace(env, **changes)


def what(config: EvaluateConfig, env: EnvDescription, policy: Mapping[str, Any]) -> Played:
    plan = evaluation_plan(env, config.eval, train_fraction=config.train_fraction, split_seed=config.split_seed)
    return played(config, env, plan, SimpleNamespace(played_with=policy))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "env", "policy"),
    [("simplevla-rl", libero(), OPENVLA), ("rlinf", libero(), RLINF), ("openvla-oft", libero(max_episode_steps=520), OPENVLA)],
)
def test_a_protocol_that_is_kept_differs_in_nothing(name, env: EnvDescription, policy: Mapping[str, Any]) -> None:
    found = what(with_protocol(EvaluateConfig(checkpoint="x"), name), env, policy)
    assert found.differs == ()
    assert found.each_once
    assert found.lines()[-1] == f"protocol {name}"


@pytest.mark.parametrize(
    ("env", "policy", "evaluation", "said"),
    [
        ({}, OPENVLA, {}, ["images openvla (rlinf there)", "jpeg yes (no there)"]),
        ({"max_episode_steps": 520}, RLINF, {}, ["time limit 520 (512 there)"]),
        ({"simulation": {**FULL, "engine": "warp", "detail": "fast"}}, RLINF, {}, ["engine warp (mujoco", "detail fast (full"]),
        ({"simulation": {**FULL, "control": "joint_position"}}, RLINF, {}, ["control joint_position (osc_delta there)"]),
        ({"simulation": {**FULL, "own_goal": True}}, RLINF, {}, ["own goal yes (no there)"]),
        ({"simulation": {**FULL, "sleep": True}}, RLINF, {}, ["sleep yes (no there)"]),
        ({"observations": {IMAGE: ArraySpec((128, 128, 3), "uint8")}}, RLINF, {}, ["image size 128 x 128 (256 x 256 there)"]),
        ({"task_ids": (3,), "num_init_states": {3: 50}}, RLINF, {}, ["tasks 1 (10 there)"]),
        ({}, RLINF, {"temperatures": (0.0, 1.6)}, ["temperature 0 and 1.6 (1.6 there)"]),
        ({}, RLINF, {"initial_states": "held-out"}, ["initial states held-out (all there)"]),
        ({}, RLINF, {"episodes_per_task": 5}, ["each once no (yes there)"]),
        ({}, RLINF, {"episodes_per_task": 60}, ["each once no (yes there)"]),
        ({"simulation": {}}, {}, {}, ["images not said", "engine not said"]),
        ({"suite": "libero_10_swap"}, RLINF, {}, ["suite libero_10_swap (libero_10 there)"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_differs_from_a_named_protocol_is_said(env, policy, evaluation, said) -> None:
    config = with_protocol(EvaluateConfig(checkpoint="x"), "rlinf")
    found = what(replace(config, eval=replace(config.eval, **evaluation)), libero(**env), policy)
    for difference in said:
        assert any(difference in each for each in found.differs), found.differs
    assert found.lines()[-1].startswith("protocol rlinf, but for: ")


def test_a_protocol_of_libero_on_another_env_is_refused() -> None:
    config = with_protocol(EvaluateConfig(checkpoint="x"), "rlinf")
    with pytest.raises(ValueError, match=r"protocol rlinf is of the suites libero_spatial, .*Libero-v0 plays None"):
        what(config, libero(suite=None), RLINF)


def test_held_out_states_are_each_once_where_all_of_them_are_played() -> None:
    config = EvaluateConfig(checkpoint="x")
    assert what(config, libero(), OPENVLA).each_once == (True,)
    assert what(replace(config, eval=EvalConfig(episodes_per_task=9)), libero(), OPENVLA).each_once == (False,)
    drawn = what(replace(config, eval=EvalConfig(episodes_per_task=9)), libero(num_init_states={}), OPENVLA)
    assert drawn.each_once == (False,)


def test_each_temperature_is_said_with_its_own_episodes() -> None:
    both = EvalConfig(temperatures=(0.0, 1.0), episodes_per_task=20)
    found = what(EvaluateConfig(checkpoint="x", eval=both), libero(), OPENVLA)
    assert (found.episodes, found.each_once) == ((100, 200), (True, False))
    assert found.lines()[0].startswith(
        "played greedy: 100 episodes of 10 tasks, held-out initial states, each once; sampled at T = 1: 200 of these; "
    )


def test_an_evaluation_prints_and_writes_down_what_was_played(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.NUM_TASKS, "drift", 2)
    config = EvaluateConfig(
        checkpoint=str(small_checkpoint),
        output=tmp_path / "results",
        display="plain",
        protocol="rlinf",
        env=EnvConfig(id="pipeline_envs:ChunkedDrift-v0", num_workers=1, envs_per_worker=2, success="terminated"),
        policy=PolicyConfig(chunk_size=CHUNK_SIZE, device="cpu", statistics_key="actions", images="rlinf"),
        eval=EvalConfig(episodes_per_task=0, initial_states="all", temperatures=(1.6,), videos=0),
    )
    (result,) = CheckpointEvaluation(config).play()
    starts = sorted((episode.task_id, episode.init_state_id) for episode in result.episodes)
    assert starts == [(task, state) for task in range(2) for state in range(4)]
    found = json.loads((tmp_path / "results" / "results.json").read_text())["played"]
    assert found["protocol"] == "rlinf"
    assert found["policy"] == {"images": "rlinf", "jpeg": False, "statistics": "actions", "gripper": "as decoded"}
    assert (found["episodes"], found["each_once"], found["temperatures"], found["time_limit"]) == ([8], [True], [1.6], 20)
    assert found["differs"] == [
        "time limit 20 (512 there)",
        "image size 4 x 5 (256 x 256 there)",
        "engine not said (mujoco there)",
        "detail not said (full there)",
    ]
    shown = " ".join(capsys.readouterr().out.split())
    assert "played sampled at T = 1.6: 8 episodes of 2 tasks, all initial states, each once; time limit 20 steps" in shown
    assert "policy: images rlinf, jpeg no, statistics actions, gripper as decoded" in shown
    assert shown.count("protocol rlinf, but for: time limit 20 (512 there)") == 2, "before it is played, and with the result"


@pytest.mark.parametrize("suite", ["libero_10", "libero_90"])
@pytest.mark.parametrize(("name", "policy"), [("simplevla-rl", OPENVLA), ("rlinf", RLINF), ("openvla-oft", OPENVLA)])
def test_libero_itself_is_played_as_the_protocols_have_it(name, policy: Mapping[str, Any], suite: str) -> None:
    config = EvaluateConfig(checkpoint="x", env=EnvConfig(kwargs={"suite": suite, "detail": "fast"}, envs_per_worker=1))
    config = with_protocol(config, name)
    shard = make_env_shard(config.env, chunk_size=8)
    found = what(config, shard.description, policy)
    shard.close()
    assert found.differs == ()
    assert found.simulation == FULL
    assert found.episodes == (50 * NUM_TASKS[suite],)
