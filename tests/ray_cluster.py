"""A Ray cluster of two nodes on this machine: one at a time, however many processes run tests."""

from contextlib import contextmanager

from filelock import FileLock

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}


@contextmanager
def two_nodes(tmp_path_factory, **head):
    """Two clusters at once starve a small machine: a second waits until the first is down."""
    from ray.cluster_utils import Cluster

    # The folder that the processes of one run of pytest have in common.
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "include_dashboard": False, **head}
        )
        try:
            cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()
