"""A Ray cluster of two nodes on this machine, only one at a time across all test processes."""

import os
from contextlib import contextmanager

from filelock import FileLock

# Ray's workers are nice, and would wait for the tests of other processes to end.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so it is called

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}


@contextmanager
def two_nodes(tmp_path_factory, **head):
    """Start two nodes; a second cluster waits for the first to end, as a small machine needs."""
    from ray.cluster_utils import Cluster

    # The folder shared by all processes of one pytest run.
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "include_dashboard": False, **head}
        )
        try:
            cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()
