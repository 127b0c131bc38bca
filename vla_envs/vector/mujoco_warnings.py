"""MuJoCo's warnings go to Python's log; by default MuJoCo writes them to MUJOCO_LOG.TXT in the working folder.

A handler belongs to the whole process: one that somebody else has set stays.
"""

import logging

import mujoco

logger = logging.getLogger(__name__)


def log_mujoco_warnings() -> None:
    """Send them to the log from now on."""
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log)


def _log(message: str) -> None:
    logger.warning("MuJoCo: %s", message)
