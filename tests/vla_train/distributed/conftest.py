"""One small Ray cluster for all tests here, and the pipeline tests' envs on the import path."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        resources={"sim": 2, "train_rollout": 2},
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=200_000_000,
    )
    yield
    ray.shutdown()
