"""N worlds of one scene on Warp's current device: physics, controller, goal and what cameras see, without the host between.

One control step is a fixed list of launches, captured as a CUDA graph where there is CUDA; a chunk replays it. All worlds go
through it together. A world that does not play, or whose chunk is over, is put back at its end to where it was, so that it does
not move; what it did meanwhile is seen by nobody. `play` allocates nothing and waits for nothing (see `device`).

Invariant: as in `libero/controller.py`, pictures and proprioception are those of one substep before the control step's end, and
goals are judged by the poses of its last substep.
"""

import dataclasses
from collections.abc import Sequence

import mujoco
import mujoco_warp
import numpy as np
import warp as wp
from mujoco_warp import OverflowType

from vla_envs.libero.controller import gripper_dofs
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.vector.control import CONTROL_MODES, OSC_DELTA, ControlMode
from vla_envs.vector.engine import ACTION_DIM, PROPRIOCEPTION_DIM
from vla_envs.vector.robot_state import ROBOT_STATE_DIM
from vla_envs.warp.controller import Constants, constants_on_device, control, forget, new_memory
from vla_envs.warp.device import Replayed, wait
from vla_envs.warp.goals import Predicates, find_touching, goal_holds, predicates_on_device
from vla_envs.warp.observe import copy_playing, feel, read_robot
from vla_envs.warp.sanity import is_bad

wp.set_module_options({"enable_backward": False})

_SEEN = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""What the renderer reads of a world."""
_PHYSICS = ("time", "qpos", "qvel", "qacc_warmstart")
"""What a world's future depends on, the controller apart."""

FAULTS = (
    "",
    "the simulation diverged",
    "there were more contacts than there was room for, and some were dropped",
    "there were more constraints than there was room for, and some were dropped",
)
"""What the numbers in `Worlds.faults` mean."""
_DIVERGED, _CONTACTS, _CONSTRAINTS = wp.constant(1), wp.constant(2), wp.constant(3)
_TOO_MANY_CONTACTS = wp.constant(int(OverflowType.BROADPHASE | OverflowType.NARROWPHASE | OverflowType.CCD))
_TOO_MANY_CONSTRAINTS = wp.constant(int(OverflowType.NEFC | OverflowType.NJMAX_NNZ))
_SPARE_ROOM = 2
"""Room for contacts and constraints: this many times the most while the objects of stored initial states land, ..."""
_LEAST_CONTACTS, _LEAST_CONSTRAINTS = 128, 512
"""... and at least this. Landing has the most: what the expert plays afterwards, about half as many."""
_STATES_APART, _LANDING_SUBSTEPS = 10, 150
"""Every tenth state is looked at, for 0.3 s."""
_LONGEST_CHUNK = 16
"""Control steps; a longer one makes new room, and a new graph."""


class Worlds:
    """N worlds of a scene.

    Args:
        scene: What is simulated.
        num_worlds: N.
        control: How `play` commands the arm; A numbers of an action.
    """

    def __init__(self, scene: LiberoEngineScene, num_worlds: int, *, control: ControlMode = CONTROL_MODES["osc_delta"]) -> None:
        model = scene.model
        self.num_worlds, self._control = num_worlds, control
        self.host_model = model
        self._osc = scene.scene.osc
        self._num_substeps = self._osc.substeps
        self.model = mujoco_warp.put_model(model)
        self.model.opt.warn_overflow = 0  # `faults` says it
        contacts, constraints = _room(scene, num_worlds, num_pairs=len(self.model.nxn_geom_pair_filtered))
        self.data = mujoco_warp.put_data(model, mujoco.MjData(model), nworld=num_worlds, naconmax=contacts, njmax=constraints)
        self._constants: Constants = constants_on_device(model, self._osc, scene.initial_control)
        self._memory = new_memory(num_worlds)
        self._predicates: Predicates = predicates_on_device(scene.scene.goal, model.ngeom)
        self._touching = wp.zeros(num_worlds, dtype=wp.uint64)
        self._before = {name: wp.clone(getattr(self.data, name)) for name in _PHYSICS}
        seen = {name: wp.clone(getattr(self.data, name)) for name in _SEEN}
        self.seen = dataclasses.replace(self.data, **seen)
        """The data as the cameras see them: poses of the last observed instant."""
        self.proprioception = wp.zeros((num_worlds, PROPRIOCEPTION_DIM), dtype=float)
        """(N, 8), see `PROPRIOCEPTION_DIM`."""
        self.robot_state = wp.zeros((num_worlds, ROBOT_STATE_DIM), dtype=float)
        """(N, `ROBOT_STATE_DIM`): rows as `robot_state` has them."""
        self._gripper_dofs = wp.array(gripper_dofs(model, self._osc), dtype=int)
        self._left = wp.zeros(num_worlds, dtype=int)
        """Control steps that each world still has to play."""
        self.played = wp.zeros(num_worlds, dtype=int)
        """(N,) int32: control steps played of the last chunk."""
        self.reached = wp.zeros(num_worlds, dtype=int)
        """(N,) int32: 1 where the goal held after the last of them."""
        self.faults = wp.zeros(num_worlds, dtype=int)
        """(N,) int32: why a world gave up in the last chunk; a place in `FAULTS`."""
        self._judging = wp.zeros(1, dtype=int)
        self._law = wp.zeros(1, dtype=int)
        self._actions = wp.zeros((_LONGEST_CHUNK, num_worlds, control.action_dim), dtype=float)
        self._control_step = Replayed(self._launch_control_step)
        self._look = Replayed(self._launch_look)

    def begin(self, worlds: Sequence[int], states: Sequence[np.ndarray]) -> None:
        """Start episodes in some worlds, from [time, qpos, qvel]; controllers forget what was before."""
        chosen = self._chosen(worlds)
        memory = self._memory
        wp.launch(
            forget,
            dim=len(worlds),
            inputs=[self._constants, chosen],
            outputs=[memory.stale, memory.goal_position, memory.goal_orientation, memory.fingers],
        )
        self.set_states(worlds, states)

    def set_states(self, worlds: Sequence[int], states: Sequence[np.ndarray]) -> None:
        """Put the physics of some worlds into [time, qpos, qvel], and look at them; controllers go on."""
        chosen, data = self._chosen(worlds), self.data
        given, last = np.stack(states).astype(np.float32), 1 + self.host_model.nq
        wp.copy(data.time[chosen], wp.array(given[:, 0]))
        wp.copy(data.qpos[chosen], wp.array(given[:, 1:last]))
        wp.copy(data.qvel[chosen], wp.array(given[:, last:]))
        data.qacc_warmstart[chosen].fill_(0.0)
        self._left.zero_()
        wp.launch(_choose, dim=len(worlds), inputs=[chosen], outputs=[self._left])
        self._look()
        wait()

    def state(self, world: int) -> np.ndarray:
        """[time, qpos, qvel] of a world, float64."""
        data = self.data
        parts = (data.time[world : world + 1], data.qpos[world], data.qvel[world])
        return np.concatenate([part.numpy() for part in parts]).astype(np.float64)

    def play(self, actions: wp.array, num_steps: wp.array, *, until_goal: bool) -> None:
        """Play chunks; `played`, `reached` and `faults` then say what happened.

        Args:
            actions: (K, N, A) float32, on the host or the device.
            num_steps: (N,) int32, on either: how many of the K each world plays at most; 0: it does not move.
            until_goal: Whether a world's chunk ends where its goal holds; False judges nothing.
        """
        self._play(actions, num_steps, until_goal=until_goal, law=self._control.law)

    def _play(self, actions: wp.array, num_steps: wp.array, *, until_goal: bool, law: int) -> None:
        num_actions = actions.shape[0]
        if num_actions > self._actions.shape[0]:
            wait()
            self._actions = wp.zeros(actions.shape, dtype=float)
            self._control_step = Replayed(self._launch_control_step)
        wp.copy(self._actions[:num_actions], actions)
        wp.copy(self._left, num_steps)
        for array in (self.played, self.reached, self.faults):
            array.zero_()
        self._judging.fill_(int(until_goal))
        self._law.fill_(law)
        for _ in range(num_actions):
            self._control_step()

    def settle(self, states: Sequence[np.ndarray], actions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Play (K, 7) actions of LIBERO's own controller from each of up to N states, and return what `save` does.

        Afterwards no world has moved.
        """
        kept = [wp.clone(array) for array in self._everything()]
        worlds = range(len(states))
        self.begin(worlds, states)
        chunk = np.zeros((len(actions), self.num_worlds, self._control.action_dim), np.float32)
        chunk[:, :, :ACTION_DIM] = actions[:, None]
        steps = np.where(np.arange(self.num_worlds) < len(states), len(actions), 0).astype(np.int32)
        chunks, limits = (wp.array(array, device="cpu", copy=False) for array in (chunk, steps))
        self._play(chunks, limits, until_goal=False, law=OSC_DELTA)
        settled = self.save(worlds)
        for array, was in zip(self._everything(), kept, strict=True):
            wp.copy(array, was)
        wait()
        return settled

    def save(self, worlds: Sequence[int]) -> list[tuple[np.ndarray, ...]]:
        """Of each of these worlds, all that its future depends on and what is seen of it: copies."""
        chosen = self._chosen(worlds)
        return list(zip(*(wp.clone(array[chosen]).numpy() for array in self._everything()), strict=True))

    def restore(self, worlds: Sequence[int], saved: Sequence[tuple[np.ndarray, ...]]) -> None:
        """Continue in each of these worlds from what `save` returned, of any world of the same scene."""
        chosen = self._chosen(worlds)
        for array, rows in zip(self._everything(), zip(*saved, strict=True), strict=True):
            wp.copy(array[chosen], wp.array(np.stack(rows), dtype=array.dtype))
            wait()

    def _everything(self) -> list[wp.array]:
        physics = [getattr(self.data, name) for name in _PHYSICS]
        memory = [getattr(self._memory, field.name) for field in dataclasses.fields(self._memory)]
        seen = [getattr(self.seen, name) for name in _SEEN]
        return [array for array in (*physics, *memory, *seen, self.proprioception, self.robot_state) if array.size]

    def _launch_control_step(self) -> None:
        model, data, memory = self.model, self.data, self._memory
        for name in _PHYSICS:
            wp.copy(self._before[name], getattr(data, name))
        data.overflow.zero_()
        for substep in range(self._num_substeps):
            mujoco_warp.step1(model, data)
            wp.launch(
                control,
                dim=self.num_worlds,
                inputs=[
                    self._constants,
                    self._law,
                    substep == 0,
                    self._actions,
                    self.played,
                    self._left,
                    data.qpos,
                    data.qvel,
                    data.qfrc_bias,
                    data.M,
                    model.M_elemid,
                    data.xanchor,
                    data.xaxis,
                    data.site_xpos,
                    data.site_xmat,
                ],
                outputs=[
                    memory.stale,
                    memory.goal_position,
                    memory.goal_orientation,
                    memory.goal_joints,
                    memory.fingers,
                    data.ctrl,
                ],
            )
            mujoco_warp.step2(model, data)
            if substep == self._num_substeps - 2:
                self._observe()
        self._touching.zero_()
        wp.launch(
            find_touching,
            dim=data.naconmax,
            inputs=[self._predicates, data.nacon, data.contact.geom, data.contact.worldid],
            outputs=[self._touching],
        )
        wp.launch(
            _end_control_step,
            dim=self.num_worlds,
            inputs=[
                self._predicates,
                self._judging,
                data.xpos,
                data.site_xpos,
                data.site_xmat,
                self._touching,
                data.qacc,
                data.overflow,
                *self._before.values(),
            ],
            outputs=[*(getattr(data, name) for name in _PHYSICS), self._left, self.played, self.reached, self.faults],
        )

    def _launch_look(self) -> None:
        """Look at the worlds that are to play, as they stand."""
        mujoco_warp.fwd_position(self.model, self.data)
        self._observe()
        self._left.zero_()

    def _observe(self) -> None:
        """Look at the worlds that play."""
        data, seen = self.data, self.seen
        for name in _SEEN:
            source = getattr(data, name)
            if source.size:
                wp.launch(copy_playing, dim=source.shape[:2], inputs=[self._left, source], outputs=[getattr(seen, name)])
        wp.launch(
            feel,
            dim=self.num_worlds,
            inputs=[self._left, self._constants, data.site_xpos, data.xquat, data.qpos],
            outputs=[self.proprioception],
        )
        wp.launch(
            read_robot,
            dim=self.num_worlds,
            inputs=[
                self._left,
                self._constants,
                self._gripper_dofs,
                data.qpos,
                data.qvel,
                data.site_xpos,
                data.xquat,
                data.xmat,
            ],
            outputs=[self.robot_state],
        )

    def _chosen(self, worlds: Sequence[int]) -> wp.array:
        return wp.array(np.asarray(worlds, np.int32), dtype=int)


def _room(scene: LiberoEngineScene, num_worlds: int, *, num_pairs: int) -> tuple[int, int]:
    """How many contacts in all N worlds, and constraints in each, there should be room for.

    Args:
        scene: What is simulated.
        num_worlds: N.
        num_pairs: Pairs of geoms that can touch, and all do in a world that has diverged, which must not harm the others.
    """
    model = scene.model
    contacts, constraints = _LEAST_CONTACTS, _LEAST_CONSTRAINTS
    for state in scene.scene.init_states[::_STATES_APART]:
        data = mujoco.MjData(model)
        data.qpos[:] = state[1 : 1 + model.nq]
        for _ in range(_LANDING_SUBSTEPS):
            mujoco.mj_step(model, data)
            contacts, constraints = max(contacts, _SPARE_ROOM * data.ncon), max(constraints, _SPARE_ROOM * data.nefc)
    return num_worlds * contacts + num_pairs, constraints


@wp.kernel
def _choose(chosen: wp.array[int], left: wp.array[int]):
    left[chosen[wp.tid()]] = 1


@wp.kernel
def _end_control_step(
    predicates: Predicates,
    judging: wp.array[int],
    xpos: wp.array2d[wp.vec3],
    site_xpos: wp.array2d[wp.vec3],
    site_xmat: wp.array2d[wp.mat33],
    touching: wp.array[wp.uint64],
    qacc: wp.array2d[float],
    overflow: wp.array[int],
    time_before: wp.array[float],
    qpos_before: wp.array2d[float],
    qvel_before: wp.array2d[float],
    warmstart_before: wp.array2d[float],
    time: wp.array[float],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    qacc_warmstart: wp.array2d[float],
    left: wp.array[int],
    played: wp.array[int],
    reached: wp.array[int],
    faults: wp.array[int],
):
    """Judge the worlds that play, and put the others back; a world that gave up is put back too."""
    world = wp.tid()
    if left[world] > 0:
        if (overflow[world] & _TOO_MANY_CONTACTS) != 0:
            faults[world] = _CONTACTS
        if (overflow[world] & _TOO_MANY_CONSTRAINTS) != 0:
            faults[world] = _CONSTRAINTS
        for index in range(qpos.shape[1]):
            if is_bad(qpos[world, index]):
                faults[world] = _DIVERGED
        for index in range(qvel.shape[1]):
            if is_bad(qvel[world, index]) or is_bad(qacc[world, index]):
                faults[world] = _DIVERGED
        if faults[world] == 0:
            left[world] = left[world] - 1
            played[world] = played[world] + 1
            if judging[0] == 1 and goal_holds(predicates, world, qpos, xpos, site_xpos, site_xmat, touching):
                reached[world] = 1
                left[world] = 0
            return
        left[world] = 0
    time[world] = time_before[world]
    for index in range(qpos.shape[1]):
        qpos[world, index] = qpos_before[world, index]
    for index in range(qvel.shape[1]):
        qvel[world, index] = qvel_before[world, index]
        qacc_warmstart[world, index] = warmstart_before[world, index]
