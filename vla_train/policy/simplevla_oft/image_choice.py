"""Which way of preparing images a checkpoint is played with: the user's word, the checkpoint's, or its trainer's.

The wrong one costs success and raises nothing. What is told by traces alone is said in the log.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft import datasets
from vla_train.policy.simplevla_oft.config import ImagePath, SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.weight_files import value_head_keys

_log = logging.getLogger(__name__)
_KEY_OF_RLINF = "add_value_head"
"""RLinf's trainer writes its options into `config.json`; nobody else has this one."""


def image_path(
    config: PolicyConfig, shape: SimpleVLAOFTConfig, weights: Callable[[], tuple[Path, ...]], *, dataset: str
) -> ImagePath:
    """The way of preparing images.

    In this order: `policy.images`; what the checkpoint says; RLinf's where its trainer has left a value head or its options;
    OpenVLA's.

    Args:
        config: What the user says.
        shape: What `config.json` says.
        weights: Gives the safetensors files; headers are read where nothing else says how.
        dataset: Whose statistics are used.

    Raises:
        ValueError: A file of weights is damaged, or JPEG is asked for with RLinf's images.
    """
    path = _path(config, shape, weights, dataset=dataset)
    if path == "rlinf" and config.jpeg == "on":
        raise ValueError(
            f"policy.jpeg on contradicts the images of {config.checkpoint}, rlinf, which has no JPEG: add policy.images openvla"
        )
    return path


def _path(
    config: PolicyConfig, shape: SimpleVLAOFTConfig, weights: Callable[[], tuple[Path, ...]], *, dataset: str
) -> ImagePath:
    if config.images != "auto":
        return config.images
    if shape.images is not None:
        return shape.images
    if shape.jpeg is not None:  # a checkpoint of ours, from when there was one way
        return "openvla"
    if _KEY_OF_RLINF in shape.published or value_head_keys(weights()):
        _log.info("images are prepared as RLinf does, without JPEG and crop: its trainer wrote the checkpoint")
        return "rlinf"
    if datasets.is_of_rlinf(dataset):
        _log.info("images pass through JPEG and crop; figures of RLinf's dataset %s are without: policy.images rlinf", dataset)
    return "openvla"


def passes_jpeg(config: PolicyConfig, shape: SimpleVLAOFTConfig, *, dataset: str) -> bool:
    """Whether OpenVLA's images take the JPEG round trip: as the config says, else the checkpoint, else its data."""
    if config.jpeg != "auto":
        return config.jpeg == "on"
    if shape.jpeg is not None and shape.images != "rlinf":
        return shape.jpeg
    passes = datasets.passes_jpeg(dataset)
    _log.info("images %s JPEG, by the name of dataset %s", "pass through" if passes else "do not pass through", dataset)
    return passes
