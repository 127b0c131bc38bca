"""Builds one LIBERO task with LIBERO and robosuite, and extracts all that running it needs.

The only module that needs robosuite.

No stored initial state says where fixtures (cabinets, stoves, microwaves) stand: LIBERO draws their poses anew at every reset.
A scene keeps one draw, that of LIBERO's usual calls: the env is made, then `seed(0)`, then `reset()`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np

from vla_envs.errors import MissingDependencyError
from vla_envs.libero.goals import Always, Goal, InSite, JointPast, Lifted, OnObject, OnSite, Predicate
from vla_envs.libero.scene import OscConstants, Placement, Scene, VisualSwitch
from vla_envs.libero.suites import ONE_AT_A_TIME, benchmark_suite, initial_states, missing_files, quiet, suite_tasks

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Public camera name -> LIBERO's."""
_PHYSICS = (
    *("body_pos", "body_quat", "body_ipos", "body_iquat", "body_mass", "body_inertia", "body_subtreemass"),
    *("body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0"),
)
"""Fields of the model that MuJoCo derives from meshes, or that LIBERO sets at reset. They must be the same at every detail."""


def compile_scene(suite: str, task_id: int, *, detail: str, fixture_seed: int = 0) -> Scene:
    """Compile one task.

    Args:
        suite: Name of the suite.
        task_id: Task within it.
        detail: "full" or "fast".
        fixture_seed: Fixtures stand where LIBERO's `seed(fixture_seed)` and `reset()` put them.

    Raises:
        ValueError: Unknown suite or task, a task that LIBERO itself cannot build, or a goal that no predicate here covers.
        MissingDependencyError: LIBERO or robosuite is not installed, or LIBERO does not hold the task's files.
    """
    tasks = suite_tasks(suite)
    if task_id not in tasks:
        raise ValueError(f"{suite} has tasks 0..{len(tasks) - 1}, got {task_id}")
    if not 0 <= fixture_seed < 2**32:
        raise ValueError(f"fixture_seed must be in 0..2**32 - 1, got {fixture_seed}")
    task = tasks[task_id]
    with ONE_AT_A_TIME:
        env = build_libero(suite, task_id, fixture_seed=fixture_seed)
        placements = _placements(env)
    try:
        model = copy.copy(env.sim.model._model)
        if detail == "fast":
            model = _with_fast_visuals(model, env.model.get_xml())
        return Scene(
            suite=suite,
            task_id=task_id,
            name=task.name,
            instruction=task.instruction,
            max_episode_steps=task.max_episode_steps,
            detail=detail,
            fixture_seed=fixture_seed,
            model=model,
            init_states=initial_states(suite, task_id),
            goal=_goal(env, model),
            osc=_osc_constants(env, model),
            placements=placements,
            visual_switches=_visual_switches(env, model),
            cameras={name: model.camera(theirs).id for name, theirs in CAMERAS.items()},
        )
    finally:
        env.close()


def build_libero(suite: str, task_id: int, *, fixture_seed: int = 0) -> Any:
    """LIBERO's own env of a task, without its wrapper and cameras, after `seed(fixture_seed)` and `reset()`.

    LIBERO's reset builds the model a second time. That cannot be spared: each build adds another sampler per drawer or door
    that starts open or closed, and all of them draw from the random numbers that then place the fixtures.
    """
    benchmark = benchmark_suite(suite)
    try:
        with quiet():
            from libero.libero.envs.env_wrapper import ControlEnv
    except ImportError as error:
        raise MissingDependencyError(f"robosuite cannot be imported ({error}): pip install 'vla-envs[libero]'") from error
    with _fixed_random_numbers(), quiet():
        try:
            wrapper = ControlEnv(
                bddl_file_name=benchmark.get_task_bddl_file_path(task_id),
                use_camera_obs=False,
                has_offscreen_renderer=False,
            )
        except FileNotFoundError as error:  # a mesh or an object of LIBERO-PRO's
            raise missing_files(suite, str(error)) from error
        except AssertionError as error:
            raise ValueError(f"LIBERO itself cannot build {suite} task {task_id}: {error}") from error
        wrapper.seed(fixture_seed)
        wrapper.reset()
    return wrapper.env


@contextmanager
def _fixed_random_numbers() -> Iterator[None]:
    """Seed numpy's global random numbers, and restore their state afterwards."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)


def _with_fast_visuals(model: mujoco.MjModel, xml: str) -> mujoco.MjModel:
    """The same physics and colours with simpler meshes and textures."""
    from vla_envs.libero.detail import simplify

    spec = mujoco.MjSpec.from_string(xml)
    simplify(spec)
    fast = spec.compile()
    for name in (*_PHYSICS, "site_rgba", "geom_rgba"):
        getattr(fast, name)[:] = getattr(model, name)
    fast.stat.meaninertia = model.stat.meaninertia
    return fast


def _osc_constants(env: Any, model: mujoco.MjModel) -> OscConstants:
    robot = env.robots[0]
    controller, gripper = robot.controller, robot.gripper
    fingers = [model.actuator(name).id for name in gripper.actuators]
    low, high = model.actuator_ctrlrange[fingers].T

    def six(value: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, np.float64), (6,)).copy()

    return OscConstants(
        arm_qpos=np.array(robot._ref_joint_pos_indexes, np.int32),
        arm_dofs=np.array(robot._ref_joint_vel_indexes, np.int32),
        arm_actuators=np.array(robot._ref_joint_actuator_indexes, np.int32),
        gripper_actuators=np.array(fingers, np.int32),
        gripper_qpos=np.array(robot._ref_gripper_joint_pos_indexes, np.int32),
        grip_site=model.site(controller.eef_name).id,
        eef_body=model.body(robot.robot_model.eef_name).id,
        initial_joints=np.array(controller.initial_joint, np.float64),
        kp=six(controller.kp),
        kd=six(controller.kd),
        input_min=six(controller.input_min),
        input_max=six(controller.input_max),
        output_min=six(controller.output_min),
        output_max=six(controller.output_max),
        torque_min=np.array(robot.torque_limits[0], np.float64),
        torque_max=np.array(robot.torque_limits[1], np.float64),
        gripper_speed=float(gripper.speed),
        gripper_bias=(high + low) / 2,
        gripper_weight=(high - low) / 2,
        substeps=round(env.control_timestep / env.model_timestep),
    )


def _visual_switches(env: Any, model: mujoco.MjModel) -> tuple[VisualSwitch, ...]:
    switches = []
    for object_name in dict.fromkeys(getattr(env, "visualization_sites_list", [])):  # LIBERO lists each once per build
        owner = env.get_object(object_name)
        for site_name, _ in owner.object_properties["vis_site_names"].values():
            site = model.site(site_name)
            alpha = max(float(site.rgba[3]), 1.0 - float(site.rgba[3]))
            rgba_on, rgba_off = site.rgba.astype(np.float32), site.rgba.astype(np.float32)
            rgba_on[3], rgba_off[3] = alpha, 1.0 - alpha
            comparison, threshold = _threshold(owner.turn_on, owner.object_properties["articulation"])
            assert comparison == ">=", "the engine judges switches by >="
            switches.append(
                VisualSwitch(
                    site_id=int(site.id),
                    qpos_address=_qpos_address(model, owner.joints[-1]),
                    threshold=threshold,
                    rgba_on=rgba_on,
                    rgba_off=rgba_off,
                )
            )
    return tuple(switches)


# --- goals


def _goal(env: Any, model: mujoco.MjModel) -> Goal:
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def contact(first: Any, second: Any) -> int:
        pairs.append((_contact_geoms(model, first), _contact_geoms(model, second)))
        return len(pairs) - 1

    predicates = tuple(_predicate(env, model, state, contact) for state in env.parsed_problem["goal_state"])
    return Goal(predicates=predicates, contact_pairs=tuple(pairs))


def _predicate(env: Any, model: mujoco.MjModel, state: list[str], contact: Callable[[Any, Any], int]) -> Predicate:
    name, arguments = state[0].lower(), state[1:]
    first = env.object_states_dict[arguments[0]]
    if name in ("open", "close", "turnon", "turnoff"):
        return _joint_predicate(env, model, name, first)
    body = env.obj_body_id.get(arguments[0])
    if name == "up":
        return Lifted(body=body)
    if name not in ("on", "in"):
        raise ValueError(f"goal predicate {name!r} is not known")
    second = env.object_states_dict[arguments[1]]
    if second.object_state_type == "object":
        if name == "in":
            raise ValueError(f"goal (in {' '.join(arguments)}) asks for a region, and {arguments[1]} is an object")
        pair = contact(env.get_object(arguments[1]), env.get_object(arguments[0]))
        return OnObject(body=body, support=env.obj_body_id[arguments[1]], contact=pair)
    region = env.object_sites_dict[arguments[1]]
    site, size = model.site(arguments[1]).id, tuple(float(extent) for extent in region.size)
    if name == "in":
        return InSite(body=body, site=int(site), size=size)
    if not hasattr(region, "under"):
        return Always()
    parent = env.get_object(second.parent_name)
    pair = -1 if parent is None else contact(parent, env.get_object(arguments[0]))
    return OnSite(body=body, site=int(site), size=size, contact=pair)


def _joint_predicate(env: Any, model: mujoco.MjModel, name: str, state: Any) -> JointPast:
    of_region = state.object_state_type == "site"
    owner = env.get_object(state.parent_name if of_region else state.object_name)
    joints = (env.object_sites_dict[state.object_name] if of_region else owner).joints
    judge = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}[name]
    shown = copy.deepcopy(owner.object_properties)
    comparison, threshold = _threshold(getattr(owner, judge), owner.object_properties["articulation"])
    owner.object_properties.update(shown)  # asking turn_on and turn_off has changed them
    return JointPast(
        qpos_addresses=tuple(_qpos_address(model, joint) for joint in joints),
        comparison=comparison,
        threshold=threshold,
        every=name in ("close", "turnoff"),
    )


def _threshold(judge: Callable[[float], bool], ranges: dict[str, list[float]]) -> tuple[str, float]:
    """The comparison and threshold of one of LIBERO's functions of a joint position, found by calling it around each bound."""
    for bound in sorted({float(value) for pair in ranges.values() for value in pair}):
        below, at, above = (bool(judge(q)) for q in (np.nextafter(bound, -np.inf), bound, np.nextafter(bound, np.inf)))
        if below != above:
            return {(True, False): "<", (True, True): "<=", (False, False): ">", (False, True): ">="}[below, at], bound
    raise ValueError(f"{judge} does not change at any of {ranges}")


def _contact_geoms(model: mujoco.MjModel, owner: Any) -> np.ndarray:
    return np.array([model.geom(name).id for name in owner.contact_geoms], np.int32)


def _qpos_address(model: mujoco.MjModel, joint: str) -> int:
    return int(model.joint(joint).qposadr[0])


# --- random starts


def _placements(env: Any) -> tuple[Placement, ...]:
    """The placement of each movable object, from LIBERO's samplers."""
    from libero.libero.envs.regions.base_region_sampler import InSiteRegionRandomSampler

    model = env.sim.model._model
    on_sites, on_objects = env.conditional_placement_initializer, env.conditional_placement_on_objects_initializer
    placements = []
    for sampler in env.placement_initializer.samplers.values():
        movable = [item for item in sampler.mujoco_objects if item.name not in env.fixtures_dict]
        placements += [_placement(model, sampler, item, origin=sampler.reference_pos[:2]) for item in movable]
    for name, sampler in on_sites.samplers.items():
        site, whole = model.site(on_sites.sample_args[name]["site_name"]).id, isinstance(sampler, InSiteRegionRandomSampler)
        placements += [_placement(model, sampler, item, site=site, whole=whole) for item in sampler.mujoco_objects]
    for name, sampler in on_objects.samplers.items():
        below = on_objects.sample_args[name]["reference"]
        placements += [_placement(model, sampler, item, attached_to=below) for item in sampler.mujoco_objects]
    return tuple(placements)


def _placement(
    model: mujoco.MjModel,
    sampler: Any,
    item: Any,
    *,
    origin: Sequence[float] = (0.0, 0.0),
    site: int = -1,
    attached_to: str = "",
    whole: bool = False,
) -> Placement:
    """One object's placement; with `whole`, the object's centre may be anywhere in the region, whatever the sampler says."""
    shrink = item.horizontal_radius if sampler.ensure_object_boundary_in_range and not whole else 0.0
    ranges = []
    for (x_low, x_high), (y_low, y_high) in zip(sampler.x_ranges, sampler.y_ranges, strict=True):
        xs = sorted((origin[0] + x_low + shrink, origin[0] + x_high - shrink))  # the object may be larger than the region
        ys = sorted((origin[1] + y_low + shrink, origin[1] + y_high - shrink))
        ranges.append((xs[0], ys[0], xs[1], ys[1]))
    orientation, turned = _orientation(sampler, item, min), _orientation(sampler, item, max)
    turn, back = np.zeros(4), np.zeros(4)
    mujoco.mju_negQuat(back, orientation)
    mujoco.mju_mulQuat(turn, turned, back)
    if np.abs(turn[1:3]).max() > 1e-6:
        raise ValueError(f"LIBERO turns {item.name} about another axis than the vertical")
    yaw = np.arctan(turn[3] / turn[0]) * 2  # a quaternion and its negative turn alike
    return Placement(
        object_name=item.name,
        qpos_address=_qpos_address(model, item.joints[-1]),
        ranges=np.array(ranges, np.float64),
        site=site,
        attached_to=attached_to,
        orientation=orientation,
        yaw_range=np.array(sorted((0.0, yaw))),
    )


def _orientation(sampler: Any, item: Any, end: Callable[[Any], float]) -> np.ndarray:
    """The quaternion w x y z that a sampler gives an object at the least (`min`) or largest (`max`) of its angles."""
    from robosuite.utils.transform_utils import quat_multiply

    fixed, rotation = copy.copy(sampler), sampler.rotation
    if isinstance(rotation, dict):
        fixed.rotation = {axis: (end(angles), end(angles)) for axis, angles in rotation.items()}
    else:
        fixed.rotation = (end(rotation), end(rotation))
    with _fixed_random_numbers():
        quat = fixed._sample_quat()
    quat = quat_multiply(quat, item.init_quat) if hasattr(item, "init_quat") else quat
    return np.asarray(quat, np.float64) / np.linalg.norm(quat)
