"""Whether MuJoCo Warp is installed; the only module of this folder that may be imported without it."""

from importlib.util import find_spec

from vla_envs.errors import MissingDependencyError
from vla_envs.vector.engine import Engine
from vla_envs.vector.options import EnvOptions


def warp_engine(num_slots: int, options: EnvOptions) -> Engine:
    """An engine on Warp.

    Raises:
        MissingDependencyError: MuJoCo Warp is not installed, or is of a version that this one does not fit.
        ValueError: A GPU is asked for, and Warp can use none; or what only MuJoCo itself does: a camera of one's own,
            frames within a chunk, randomization, sleep.
    """
    if options.render_every is not None:
        raise ValueError(f"Warp draws once per chunk: render_every must be None, got {options.render_every}; 'mujoco' takes it")
    cameras = options.drawn_cameras
    own = [camera.name for camera in cameras if camera.own is not None]
    if own:
        raise ValueError(f"Warp draws the scene's own cameras only, got a Camera {own[0]!r}: 'mujoco' draws it")
    if options.randomization is not None:
        raise ValueError("Warp simulates one scene in all slots of a task: randomization must be None; 'mujoco' takes it")
    if options.sleep:
        raise ValueError("Warp simulates all objects always: sleep must be False; 'mujoco' takes it")
    try:
        from vla_envs.warp.device import WarpDevice
        from vla_envs.warp.engine import WarpEngine
    except ImportError as error:
        raise MissingDependencyError(f"simulating on Warp needs MuJoCo Warp: pip install 'vla-envs[warp]' ({error})") from error
    return WarpEngine(
        num_slots,
        cameras=cameras,
        quality=options.quality,
        device=WarpDevice(options.device),
        tensors=options.arrays == "torch",
        control=options.control_mode,
    )


def has_warp_on_a_gpu() -> bool:
    """Whether MuJoCo Warp is installed and Warp can use a GPU."""
    if find_spec("mujoco_warp") is None or find_spec("warp") is None:
        return False
    import warp

    warp.config.log_level = warp.LOG_WARNING
    return bool(warp.is_cuda_available())
