"""From a compiled scene to files for Isaac Lab: USD, and the numbers that an environment of the task needs.

Starts are drawn and settled here, in MuJoCo: collision-free placements from the task's own regions, played until they are at
rest. A reset in Isaac Lab then copies one of them, which costs nothing on a GPU and cannot collide.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import mujoco
import numpy as np

from vla_envs.isaac.lab.entities import Entity, Kind, body_path, find_entities, joints_of, prim_name
from vla_envs.isaac.lab.surfaces import pixels_of
from vla_envs.isaac.lab.task_file import (
    Controller,
    ConvertedTask,
    Frame,
    Goal,
    Light,
    Part,
    Starts,
    View,
    save_task,
)
from vla_envs.isaac.lab.usd_files import EntityWriter, geom_prim, look_label
from vla_envs.libero.engine_scene import LiberoEngineScene, LiberoPlayer
from vla_envs.libero.goals import goal_to_json
from vla_envs.libero.initial_states import InitialStates
from vla_envs.libero.scene import Scene
from vla_envs.vector.allowance import allowed_cores
from vla_envs.vector.settled import SETTLING_ACTION

_log = logging.getLogger(__name__)

_MATT_SPECULAR, _MATT_SHININESS = 0.5, 0.5
"""What MuJoCo gives geoms without a material."""
SETTLE_STEPS = 10
"""Control steps that every start has been played, as LIBERO's own evaluation does."""


def convert_task(engine_scene: LiberoEngineScene, folder: Path, *, num_starts: int) -> Path:
    """Write one task.

    Args:
        engine_scene: The task.
        folder: Receives the files; tasks share what is equal.
        num_starts: How many starts to draw.

    Returns:
        The task's own file.

    Raises:
        UnsupportedTaskError: The scene has what USD or Isaac Lab cannot express.
    """
    scene = engine_scene.scene
    names = names_of(scene.model)
    writer = EntityWriter(folder)
    parts = tuple(_part(names, entity, writer.write(scene.model, entity), folder) for entity in names.entities)
    frames: list[Frame] = []
    goal = _goal(scene, names, frames)
    states, orientation, fingers = _settled_states(engine_scene, num_starts)
    if scene.visual_switches:
        _log.warning("%s: the glow of a burner is not drawn by Isaac Lab", scene.name)
    return save_task(
        ConvertedTask(
            suite=scene.suite,
            task_id=scene.task_id,
            name=scene.name,
            instruction=scene.instruction,
            max_episode_steps=scene.max_episode_steps,
            parts=parts,
            goal=goal,
            controller=_controller(scene, names, frames, orientation, fingers),
            frames=tuple(frames),  # after all that add to them
            views={name: _view(scene.model, names, camera) for name, camera in scene.cameras.items()},
            lights=_lights(scene.model),
            looks=_looks(scene.model),
            background=_background(scene.model),
            options=_options(scene),
            starts=starts_of(names, states),
            folder=folder,
        )
    )


class Names:
    """MuJoCo ids as names in the USD files."""

    def __init__(self, model: mujoco.MjModel, entities: tuple[Entity, ...]) -> None:
        self.model, self.entities = model, entities
        self._owner = {body: entity for entity in entities for body in entity.bodies}
        self._data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, self._data)

    def body(self, body: int) -> str:
        """`<entity>/<body>`."""
        return f"{self._owner[body].name}/{body_path(self.model, self._owner[body], body)}"

    def joint(self, joint: int) -> str:
        """`<entity>/<joint>`."""
        return f"{self._owner[int(self.model.jnt_bodyid[joint])].name}/{prim_name(self.model.joint(joint).name)}"

    def geom(self, geom: int) -> str:
        """`<entity>/<body>/<geom>`."""
        return f"{self.body(int(self.model.geom_bodyid[geom]))}/{geom_prim(self.model, geom)}"

    def frame(self, body: int, position: np.ndarray, quaternion: np.ndarray) -> Frame:
        """A place on a body, given as MuJoCo has it."""
        owner, data = self._owner[body], self._data
        if owner.kind in (Kind.ROBOT, Kind.FIXTURE) or body == owner.root:
            name = "" if owner.kind is Kind.ARENA else self.body(body)
            return Frame(body=name, position=tuple(position.tolist()), orientation=_xyzw(quaternion))
        place, turn, back = np.zeros(3), np.zeros(4), np.zeros(4)  # in the frame of the root, to which the body is fixed
        mujoco.mju_rotVecQuat(place, position, data.xquat[body])
        mujoco.mju_negQuat(back, data.xquat[owner.root])
        mujoco.mju_rotVecQuat(place, data.xpos[body] + place - data.xpos[owner.root], back)
        mujoco.mju_mulQuat(turn, data.xquat[body], quaternion)
        mujoco.mju_mulQuat(turn, back, turn.copy())
        return self.frame(owner.root, place, turn)

    def joint_at(self, address: int) -> int:
        """The joint whose position is at this address in qpos."""
        return int(np.flatnonzero(self.model.jnt_qposadr == address)[0])

    def moving_joints(self) -> list[int]:
        """All joints but the free ones, in the order of the entities."""
        jointed = [entity for entity in self.entities if entity.kind is not Kind.OBJECT]
        return [joint for entity in jointed for body in entity.bodies for joint in joints_of(self.model, body)]


def names_of(model: mujoco.MjModel) -> Names:
    """The names of a model's bodies, joints and geoms."""
    return Names(model, find_entities(model))


def _part(names: Names, entity: Entity, file: Path, folder: Path) -> Part:
    model = names.model
    joints = [joint for body in entity.bodies for joint in joints_of(model, body)]
    free = [joint for joint in joints if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE]
    dampings = {float(damping) for joint in free for damping in model.dof_damping[model.jnt_dofadr[joint] :][:6]}
    assert len(dampings) <= 1, f"{entity.name}: its free joint has several dampings"
    return Part(
        name=entity.name,
        kind=entity.kind.value,
        file=file.relative_to(folder).as_posix(),
        position=tuple(model.body_pos[entity.root].tolist()),
        orientation=_xyzw(model.body_quat[entity.root]),
        root="" if entity.kind is Kind.ARENA else prim_name(model.body(entity.root).name),
        joints=() if free else tuple(prim_name(model.joint(joint).name) for joint in joints),
        damping=dampings.pop() if dampings else 0.0,
    )


def _goal(scene: Scene, names: Names, frames: list[Frame]) -> Goal:
    """The goal in names; adds the frames that it looks at."""
    model = scene.model
    joints: list[str] = []

    def add(frame: Frame) -> int:
        if frame not in frames:
            frames.append(frame)
        return frames.index(frame)

    def add_joint(address: int) -> int:
        name = names.joint(names.joint_at(address))
        if name not in joints:
            joints.append(name)
        return joints.index(name)

    predicates = []
    for predicate in goal_to_json(scene.goal)["predicates"]:
        named = dict(predicate)
        for key in ("body", "support"):
            if key in named:
                named[key] = add(names.frame(named[key], np.zeros(3), np.array([1.0, 0, 0, 0])))
        if "site" in named:
            site = named["site"]
            named["site"] = add(names.frame(int(model.site_bodyid[site]), model.site_pos[site], model.site_quat[site]))
        if "qpos_addresses" in named:
            named["qpos_addresses"] = [add_joint(address) for address in named["qpos_addresses"]]
        predicates.append(named)
    pairs = tuple(
        (tuple(names.geom(int(geom)) for geom in first), tuple(names.geom(int(geom)) for geom in second))
        for first, second in scene.goal.contact_pairs
    )
    return Goal(predicates=tuple(predicates), contact_pairs=pairs, joints=tuple(joints))


def _settled_states(engine_scene: LiberoEngineScene, num_starts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MuJoCo states (S, 1 + nq + nv) at rest, and what all controllers then remember: goal orientation and finger commands."""
    scene, local = engine_scene.scene, threading.local()
    draws = InitialStates(scene)
    drawn = [draws.numbered(number) for number in range(num_starts)]

    def settle(state: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        player: LiberoPlayer = local.__dict__.setdefault("player", engine_scene.new_player())
        player.begin(state)
        actions = np.tile(SETTLING_ACTION, (SETTLE_STEPS, 1))
        if player.play(actions, SETTLE_STEPS) < SETTLE_STEPS:
            raise RuntimeError(f"{scene.name}: a start did not come to rest: {player.fault()}")
        memory = player.save().control
        settled = player.get_state()
        settled[0] = 0.0
        return settled, (memory.goal_orientation, memory.gripper)

    with ThreadPoolExecutor(allowed_cores()) as pool:
        settled, memories = zip(*pool.map(settle, drawn), strict=True)
    orientation, fingers = memories[0]
    assert all(np.array_equal(other[0], orientation) and np.array_equal(other[1], fingers) for other in memories)
    return np.stack(settled), orientation, fingers


def starts_of(names: Names, states: np.ndarray) -> Starts:
    """MuJoCo's states as states of joints and objects."""
    model = names.model
    qpos, qvel = states[:, 1 : 1 + model.nq], states[:, 1 + model.nq :]
    joints = names.moving_joints()
    objects = []
    for entity in names.entities:
        if entity.kind is not Kind.OBJECT:
            continue
        joint = joints_of(model, entity.root)[0]
        place, dof = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
        turns = qpos[:, place + 3 : place + 7]
        spins = qvel[:, dof + 3 : dof + 6].copy()  # MuJoCo's are in the body's frame
        for spin, turn in zip(spins, turns, strict=True):
            mujoco.mju_rotVecQuat(spin, spin.copy(), turn)
        objects.append(
            np.concatenate([qpos[:, place : place + 3], np.roll(turns, -1, axis=1), qvel[:, dof : dof + 3], spins], axis=1)
        )
    return Starts(
        joint_positions=qpos[:, model.jnt_qposadr[joints]],
        joint_speeds=qvel[:, model.jnt_dofadr[joints]],
        objects=np.stack(objects, axis=1) if objects else np.zeros((len(states), 0, 13)),
        mujoco_states=states,
    )


def _controller(
    scene: Scene, names: Names, frames: list[Frame], goal_orientation: np.ndarray, fingers: np.ndarray
) -> Controller:
    """The controller in names; adds the frame that it moves."""
    model, osc, data = scene.model, scene.osc, mujoco.MjData(scene.model)
    data.qpos[osc.arm_qpos] = osc.initial_joints
    mujoco.mj_kinematics(model, data)
    grip = names.frame(int(model.site_bodyid[osc.grip_site]), model.site_pos[osc.grip_site], model.site_quat[osc.grip_site])
    frames.append(grip)
    finger_ids = osc.gripper_actuators
    taken = {field.name for field in fields(Controller)} & set(osc._fields)
    gains, biases = model.actuator_gainprm[finger_ids, 0], model.actuator_biasprm[finger_ids]
    assert np.allclose(biases[:, 1], -gains), "fingers are driven by position servos"
    return Controller(
        **{name: getattr(osc, name) for name in taken},
        arm_joints=tuple(names.joint(names.joint_at(address)) for address in osc.arm_qpos),
        finger_joints=tuple(names.joint(names.joint_at(address)) for address in osc.gripper_qpos),
        grip_frame=frames.index(grip),
        hand=names.body(int(osc.eef_body)),
        finger_gain=gains.copy(),
        finger_force=model.actuator_forcerange[finger_ids, 1].copy(),
        hand_quaternion=data.xquat[osc.eef_body].copy(),
        goal_orientation=goal_orientation,
        fingers=fingers,
    )


def _view(model: mujoco.MjModel, names: Names, camera: int) -> View:
    if model.cam_mode[camera] != mujoco.mjtCamLight.mjCAMLIGHT_FIXED:
        _log.warning("camera %s follows something, and is converted as one that does not", model.camera(camera).name)
    frame = names.frame(int(model.cam_bodyid[camera]), model.cam_pos[camera], model.cam_quat[camera])
    return View(frame=frame, fovy=float(model.cam_fovy[camera]))


def _lights(model: mujoco.MjModel) -> tuple[Light, ...]:
    lights = []
    for light in np.flatnonzero(model.light_active):
        if model.light_bodyid[light] != 0:
            _log.warning("light %s moves with a body, and is converted as one that does not", model.light(light).name)
        directional = model.light_type[light] == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
        values = {
            name: tuple(getattr(model, f"light_{source}")[light].tolist())
            for name, source in (
                ("position", "pos"),
                ("direction", "dir"),
                ("diffuse", "diffuse"),
                ("ambient", "ambient"),
                ("specular", "specular"),
                ("attenuation", "attenuation"),
            )
        }
        lights.append(
            Light(
                directional=bool(directional),
                cutoff=float(model.light_cutoff[light]),
                exponent=float(model.light_exponent[light]),
                follows_camera=False,
                **values,
            )
        )
    head = model.vis.headlight
    if head.active:
        colours = {name: tuple(getattr(head, name).tolist()) for name in ("diffuse", "ambient", "specular")}
        place = {"position": (0.0, 0.0, 0.0), "direction": (0.0, 0.0, -1.0), "attenuation": (1.0, 0.0, 0.0)}
        lights.append(Light(directional=True, cutoff=180.0, exponent=0.0, follows_camera=True, **colours, **place))
    return tuple(lights)


def _looks(model: mujoco.MjModel) -> dict[str, tuple[float, float, float]]:
    looks = {}
    for geom in range(model.ngeom):
        material = int(model.geom_matid[geom])
        numbers = (
            (0.0, _MATT_SPECULAR, _MATT_SHININESS)
            if material < 0
            else (model.mat_emission[material], model.mat_specular[material], model.mat_shininess[material])
        )
        looks[look_label(model, geom)] = tuple(float(number) for number in numbers)
    flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX)) & (model.geom_matid >= 0)
    mirrors = [model.geom(geom).name for geom in np.flatnonzero(flat) if model.mat_reflectance[model.geom_matid[geom]] > 0]
    if mirrors:
        _log.warning("drawn without the reflections that MuJoCo draws in them: %s", ", ".join(mirrors))
    return looks  # type: ignore[return-value]


def _background(model: mujoco.MjModel) -> tuple[float, ...]:
    """The mean colour of the sky; black without one."""
    skies = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    if not len(skies):
        return (0.0, 0.0, 0.0)
    return tuple((pixels_of(model, int(skies[0])).mean(axis=(0, 1)) / 255.0).tolist())


def _options(scene: Scene) -> dict[str, float]:
    option = scene.model.opt
    names = ("timestep", "impratio", "density", "viscosity", "iterations", "ls_iterations", "tolerance")
    known = option.integrator == mujoco.mjtIntegrator.mjINT_EULER and option.solver == mujoco.mjtSolver.mjSOL_NEWTON
    if not known or option.enableflags:
        _log.warning("%s: MuJoCo's integrator, solver or flags are converted as Euler, Newton and none", scene.name)
    elliptic = option.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
    return {name: float(getattr(option, name)) for name in names} | {"elliptic": float(elliptic)}


def _xyzw(quaternion: np.ndarray) -> tuple[float, ...]:
    w, x, y, z = (float(part) for part in quaternion)
    return (x, y, z, w)
