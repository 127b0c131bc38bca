"""One small Ray cluster of three nodes for all tests here: the driver's, one for simulators and one for policies."""

import os
from collections.abc import Iterator

import pytest
from ray_nodes import RayNodes


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[RayNodes]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
    try:
        sim = cluster.add_node(num_cpus=1, resources={"sim": 2}, **memory)
        policy = cluster.add_node(num_cpus=1, resources={"train_rollout": 2}, **memory)
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        yield RayNodes(
            address=cluster.address,
            driver_node=ray.get_runtime_context().get_node_id(),
            sim_node=sim.node_id,
            policy_node=policy.node_id,
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
