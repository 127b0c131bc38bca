"""Recipes: functions that return a complete `TrainConfig`. Every number can still be changed on the command line."""

from collections.abc import Callable

from vla_train.config import TrainConfig
from vla_train.recipes.demo import demo
from vla_train.recipes.one_gpu import gpu_24gb, gpu_48gb, one_gpu
from vla_train.recipes.paper import paper

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "one-gpu": one_gpu,
    "gpu-48gb": gpu_48gb,
    "gpu-24gb": gpu_24gb,
    "paper": paper,
}
DEFAULT_RECIPE = "demo"
"""A real LIBERO task on any machine, from a policy that comes along: minutes on two CPU cores."""
