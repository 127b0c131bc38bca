"""The LIBERO benchmark as a vector env.

If `MUJOCO_GL` is set, importing MuJoCo loads that OpenGL library, and fails in many ways where the library is missing. So this
package imports MuJoCo first, and says what to install.
"""

import os

from vla_envs.errors import RenderingUnavailableError

try:
    import mujoco  # noqa: F401
except Exception as error:
    if "MUJOCO_GL" not in os.environ:
        raise
    raise RenderingUnavailableError(
        f"MuJoCo cannot be imported with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error!r}). Set MUJOCO_GL=egl and install "
        "OpenGL: apt-get install libegl1 libgl1 libgl1-mesa-dri; or unset it, if nothing is to be drawn"
    ) from error
