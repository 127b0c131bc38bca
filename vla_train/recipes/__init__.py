"""Recipes: functions that return a complete config. Every number can still be changed on the command line."""

from collections.abc import Callable

from vla_train.config import TrainConfig
from vla_train.from_scratch.config import FromScratchConfig
from vla_train.recipes.demo import demo
from vla_train.recipes.gpu_from_scratch import gpu_from_scratch
from vla_train.recipes.one_gpu import gpu_24gb, gpu_48gb, one_gpu
from vla_train.recipes.paper import paper

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "one-gpu": one_gpu,
    "gpu-48gb": gpu_48gb,
    "gpu-24gb": gpu_24gb,
    "paper": paper,
}
FROM_SCRATCH: dict[str, Callable[[], FromScratchConfig]] = {"gpu-from-scratch": gpu_from_scratch}
"""Recipes of `train` that make what it starts from as well; they have options of their own."""
DEFAULT_RECIPE = "demo"
"""A real LIBERO task on any machine, from a policy that comes along: minutes on two CPU cores."""
