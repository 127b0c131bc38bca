"""Objects that sleep: LIBERO's physics beside it, who may sleep, and that however an episode is played it is the same."""

from functools import partial

import mujoco
import numpy as np
import pytest

from vla_envs import IsaacEnv, LiberoEnv
from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene, LiberoPlayer
from vla_envs.libero.privileged import PrivilegedView

CHUNK = 8


def make(suite: str, task_id: int, **options: object) -> LiberoEnv:
    return LiberoEnv(1, suite=suite, task_id=task_id, detail="fast", cameras=(), autoreset_mode="Disabled", **options)


def of_expert(suite: str, task_id: int) -> np.ndarray:
    """What the expert does in the first episode, (C, K, 7) float32."""
    env = make(suite, task_id)
    env.reset(seed=0)
    expert, actions, over = env.make_expert(), [], False
    while not over:
        actions.append(expert.act())
        _, _, terminated, truncated, _ = env.step(actions[-1][None].astype(np.float32))
        over = bool(terminated[0] or truncated[0])
    env.close()
    assert terminated[0]
    missing = -len(actions) % CHUNK
    return np.array(actions + actions[-1:] * missing, np.float32).reshape(-1, CHUNK, 7)


def play(env: LiberoEnv, chunks: np.ndarray) -> tuple[bool, np.ndarray]:
    """Whether the task was done, and [time, qpos, qvel] at the end."""
    env.reset(seed=0)
    done = False
    for chunk in chunks:
        _, _, terminated, _, _ = env.step(chunk[None])
        done |= bool(terminated[0])
    return done, env.get_state()[0]


@pytest.mark.parametrize(("suite", "task_id"), [("libero_object", 6), ("libero_goal", 7)])
def test_the_expert_succeeds_as_without_and_objects_end_where_they_would(suite: str, task_id: int) -> None:
    chunks = of_expert(suite, task_id)
    with_all_awake, with_sleep = (play(make(suite, task_id, chunk_size=CHUNK, sleep=sleep), chunks) for sleep in (False, True))
    assert with_all_awake[0]
    assert with_sleep[0]
    np.testing.assert_allclose(with_sleep[1], with_all_awake[1], atol=0.02)
    assert not np.array_equal(with_sleep[1], with_all_awake[1]), "nobody slept"


@pytest.fixture(scope="module")
def player() -> LiberoPlayer:
    return LiberoEngineScene(load_scene("libero_object", 6, detail="fast"), sleep=True).new_player()


def begin(player: LiberoPlayer) -> None:
    player.begin(player._scene.scene.init_states[0])
    player.play(np.zeros((10, 7)), 10)


def test_what_lies_still_sleeps_and_wakes_when_it_is_hit(player: LiberoPlayer) -> None:
    begin(player)
    model, data = player._model, player._data
    assert (data.tree_asleep >= 0).sum() >= 5, "of a basket and six things to put in"
    ketchup, sauce = model.body("ketchup_1_main"), model.body("tomato_sauce_1_main")
    falls, is_hit = (int(model.jnt_qposadr[body.jntadr[0]]) for body in (ketchup, sauce))
    state = player.get_state()
    above = np.array([0.02, 0.0, 0.25])  # m: a quarter of a second to fall
    state[1 + falls : 4 + falls] = state[1 + is_hit : 4 + is_hit] + above
    player.set_state(state)
    player.play(np.zeros((2, 7)), 2)
    assert data.tree_asleep[model.body_treeid[sauce.id]] >= 0
    before = data.qpos.copy()
    player.play(np.zeros((8, 7)), 8)
    assert np.abs(data.qpos - before)[is_hit : is_hit + 3].max() > 0.01


def test_a_marked_moment_is_gone_back_to_with_its_sleepers(player: LiberoPlayer) -> None:
    begin(player)
    assert (player._data.tree_asleep >= 0).any()
    player.mark()
    actions = np.random.default_rng(0).uniform(-1, 1, (CHUNK, 7))
    player.play(actions, CHUNK)
    once = player.get_state()
    player.rewind()
    player.play(actions, CHUNK)
    np.testing.assert_array_equal(player.get_state(), once)


def test_a_saved_moment_begins_alike_in_every_player_and_all_awake(player: LiberoPlayer) -> None:
    begin(player)
    saved = player.save()
    ends = []
    for other in (player, player._scene.new_player()):
        other.restore(saved)
        assert (other._data.tree_asleep < 0).all()
        other.play(np.ones((CHUNK, 7)), CHUNK)
        ends.append(other.get_state())
    np.testing.assert_array_equal(*ends)


def test_setting_a_state_moves_sleepers_and_wakes_all(player: LiberoPlayer) -> None:
    begin(player)
    ketchup = player._model.body("ketchup_1_main")
    assert player._data.tree_asleep[player._model.body_treeid[ketchup.id]] >= 0
    state = player.get_state()
    address = int(player._model.jnt_qposadr[ketchup.jntadr[0]])
    state[1 + address] += 0.1  # m
    player.set_state(state)
    assert player._data.xpos[ketchup.id, 0] == pytest.approx(state[1 + address], abs=1e-9)
    assert (player._data.tree_asleep < 0).all()


@pytest.mark.parametrize("options", [{"render_every": 2, "cameras": ("agentview",)}, {"success_fn": "test_sleep:never"}])
def test_a_chunk_in_pieces_filmed_or_judged_by_a_function_is_the_same_episode(options: dict[str, object]) -> None:
    chunks = np.random.default_rng(0).uniform(-1, 1, (3, CHUNK, 7)).astype(np.float32)
    make = partial(LiberoEnv, 1, suite="libero_object", task_id=6, detail="fast", image_size=32, chunk_size=CHUNK, sleep=True)
    ends = []
    for env, pieces in ((make(cameras=()), 1), (make(cameras=()), 4), (make(**{"cameras": (), **options}), 1)):
        env.reset(seed=0)
        for chunk in chunks:
            for piece in np.split(chunk, pieces):
                env.step(piece[None])
        ends.append(env.get_state()[0])
    np.testing.assert_array_equal(ends[1], ends[0])
    np.testing.assert_array_equal(ends[2], ends[0])


def never(view: PrivilegedView) -> bool:
    return False


def test_objects_whose_contacts_the_goal_asks_about_never_sleep() -> None:
    """The bowl on the plate: MuJoCo reports no contact between two that sleep, and the goal would be lost with it."""
    scene = load_scene("libero_spatial", 0, detail="fast")
    player = LiberoEngineScene(scene, sleep=True).new_player()
    begin(player)
    model = scene.model
    asked = np.concatenate([geoms for pair in scene.goal.contact_pairs for geoms in pair])
    trees = np.unique(model.body_treeid[model.geom_bodyid[asked]])
    awake = player._data.tree_asleep < 0
    assert len(trees) >= 2
    assert awake[trees[trees >= 0]].all()
    assert not awake.all()


def test_envs_with_and_without_do_not_share_a_scene() -> None:
    awake, sleepy = make("libero_object", 6), make("libero_object", 6, sleep=True)
    flags = [int(env._scenes[6].model.opt.enableflags) & int(mujoco.mjtEnableBit.mjENBL_SLEEP) for env in (awake, sleepy)]
    assert flags == [0, int(mujoco.mjtEnableBit.mjENBL_SLEEP)]
    assert "sleep" not in awake.simulation
    assert sleepy.simulation["sleep"]


def test_it_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="sleep must be True or False"):
        make("libero_object", 6, sleep="deep")
    with pytest.raises(ValueError, match="sleep must be False"):
        make("libero_object", 6, sleep=True, engine="warp")
    with pytest.raises(ValueError, match="sleep is for the backend 'mujoco', not for 'isaaclab'"):
        IsaacEnv(suite="libero_object", task_id=6, backend="isaaclab", sleep=True)
