"""What tests need to know of the Ray cluster that `conftest` starts."""

from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
"""Folder of the pipeline tests, whose envs and policies are used here too."""


@dataclass(frozen=True, kw_only=True)
class RayNodes:
    """A running cluster: ids of its nodes."""

    address: str
    driver_node: str
    """Offers nothing."""
    sim_node: str
    policy_node: str
