"""The Isaac Lab backend, as far as it can be known without Isaac Lab: whether it is there, and which arguments it takes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_envs.errors import MissingDependencyError
from vla_envs.isaac.lab.task_file import load_task
from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.options import EnvOptions, check_integer, read_options

if TYPE_CHECKING:
    from vla_envs.isaac.lab.env import IsaacLabEnv

SETTLE_STEPS = 10
"""What `convert` has played from every start."""
_CAMERAS = ("agentview", "wrist")
"""What `convert` keeps."""


def isaaclab_env(
    num_envs: int = 1,
    *,
    suite: str = "libero_spatial",
    task_id: int = 0,
    num_starts: int | None = None,
    task: str | None = None,
    instruction: str | None = None,
    image: str | None = None,
    state: str | None = None,
    success: str | None = None,
    cfg: Any = None,
    **options: Any,
) -> IsaacLabEnv:
    """A converted LIBERO task, or with `task` any registered one, on Isaac Lab; arguments as of `IsaacEnv`.

    Raises:
        MissingDependencyError: Isaac Lab is not installed.
        SceneFormatError: `scene_dir` does not hold the task.
        ValueError: An argument that cannot work; nothing was started.
    """
    settings = read_options(options, isaaclab_env)
    check_integer("num_envs", num_envs, least=1)
    if settings.state_keys:
        raise ValueError(f"state_keys is for the backends 'mujoco' and 'warp', got {settings.state_keys!r} for 'isaaclab'")
    if settings.control != "osc_delta":
        raise ValueError(f"control is for the backends 'mujoco' and 'warp', got {settings.control!r} for 'isaaclab'")
    for option, cameras in (("depth", settings.depth), ("segmentation", settings.segmentation)):
        if cameras:
            raise ValueError(f"{option} is for the backends 'mujoco' and 'warp', got {cameras!r} for 'isaaclab'")
    if settings.render_every is not None:
        raise ValueError(f"render_every is for the backend 'mujoco', got {settings.render_every} for 'isaaclab'")
    if settings.randomization is not None:
        raise ValueError("randomization is for the backend 'mujoco', not for 'isaaclab': leave it out")
    if settings.sleep:
        raise ValueError("sleep is for the backend 'mujoco', not for 'isaaclab': leave it out")
    if num_starts is not None:
        raise ValueError("num_starts of converted tasks is what `convert --num-starts` was given: leave it out here")
    if task is None:
        given = {"instruction": instruction, "image": image, "state": state, "success": success, "cfg": cfg}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} is for a task of Isaac Lab's own: say which, with task='Isaac-...'")
        return _libero(num_envs, suite, task_id, settings)
    if not instruction or not image:
        raise ValueError(f"task={task!r} needs an instruction and the name of a picture, such as image='policy/image'")
    return _registered(num_envs, task, instruction, image, state, success, cfg, settings)


def _libero(num_envs: int, suite: str, task_id: int, settings: EnvOptions) -> IsaacLabEnv:
    check_integer("task_id", task_id, least=0)
    if settings.scene_folder is None:
        raise ValueError(
            "backend='isaaclab' needs scene_dir, a folder of converted tasks: "
            f"python -m vla_envs.isaac convert --suite {suite} --out FOLDER"
        )
    if settings.settle_steps != SETTLE_STEPS:
        raise ValueError(f"settle_steps is {SETTLE_STEPS} in converted tasks, got {settings.settle_steps}")
    if settings.detail != "full":
        raise ValueError(f"detail is 'full' in converted tasks, got {settings.detail!r}")
    cameras = [camera.name for camera in settings.drawn_cameras]
    if not set(cameras) <= set(_CAMERAS):
        raise ValueError(f"cameras of converted tasks are {_CAMERAS}, got {tuple(cameras)}")
    sides = {side for camera in settings.drawn_cameras for side in (camera.height, camera.width)}
    if len(sides) > 1:
        raise ValueError(f"pictures of converted tasks are square, and all of one size, got image_size={settings.image_size!r}")
    converted = load_task(Path(settings.scene_folder), suite, task_id)
    _require_isaaclab()
    from vla_envs.isaac.lab.env import IsaacLabEnv, TaskFacts
    from vla_envs.isaac.lab.simulation import make_libero
    from vla_envs.vector.spaces import image_key

    keys = [image_key(name) for name in cameras]
    facts = TaskFacts(
        instruction=converted.instruction,
        images={key: f"policy/{key}" for key in keys},
        state="policy/state",
        success="success",
        gave_up="gave_up",
        suite=suite,
        task_id=task_id,
        mirrored_images=ChunkedVectorEnv.mirrored_images,
        robot_type=ChunkedVectorEnv.robot_type,
        control_mode=ChunkedVectorEnv.control_mode,
        gripper_convention=ChunkedVectorEnv.gripper_convention,
    )
    env = make_libero(
        converted,
        num_envs=num_envs,
        cameras=tuple(cameras),
        image_size=max(sides, default=0),
        quality=settings.quality,
        max_episode_steps=settings.max_episode_steps,
        device=settings.device,
    )
    return _adapted(IsaacLabEnv, env, facts, settings)


def _registered(
    num_envs: int,
    task: str,
    instruction: str,
    image: str,
    state: str | None,
    success: str | None,
    cfg: Any,
    settings: EnvOptions,
) -> IsaacLabEnv:
    _require_isaaclab()
    from vla_envs.isaac.lab.env import IsaacLabEnv, TaskFacts
    from vla_envs.isaac.lab.simulation import make_registered

    facts = TaskFacts(instruction=instruction, images={"image": image}, state=state, success=success)
    env = make_registered(
        task, num_envs=num_envs, cfg=cfg, max_episode_steps=settings.max_episode_steps, device=settings.device
    )
    return _adapted(IsaacLabEnv, env, facts, settings)


def _adapted(adapter: Any, env: Any, facts: Any, settings: EnvOptions) -> IsaacLabEnv:
    """The vector env; if it cannot be made, the simulation is closed: a process has only one."""
    try:
        return adapter(
            env,
            facts=facts,
            chunk_size=settings.chunk_size,
            autoreset_mode=settings.autoreset_mode,
            render_mode=settings.render_mode,
            arrays=settings.arrays,
        )
    except BaseException:
        env.close()
        raise


def _require_isaaclab() -> None:
    if find_spec("isaaclab") is None:
        raise MissingDependencyError(
            "backend='isaaclab' needs Isaac Lab, in an environment of its own with Python 3.12: pip install isaaclab==3.0.0; "
            "without it, backend='mujoco' runs on any CPU"
        )
