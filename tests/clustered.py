"""A Ray cluster of two nodes on this machine, what becomes of tasks on it, and of those whose node dies, as JSON.

    python tests/clustered.py FOLDER

The first node has a core, the second two and a GPU, which is a number for Ray. They listen on loopback alone, know a
token of their own, and send nothing to anybody.
"""

import contextlib
import json
import os
import secrets
import signal
import sys
import time
from functools import partial
from pathlib import Path

os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(16),
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # keeps 127.0.0.1 from becoming the machine's address
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",
)

import ray
from ray.cluster_utils import Cluster

from zoo.cluster import Task, each
from zoo.errors import DataError


def seen(say):
    """What Ray says that the task has, and its folder."""
    return ray.get_runtime_context().get_assigned_resources(), os.getcwd()


def refuse(error, say):
    """Fail."""
    raise error


def until(file, say):
    """Wait for a file."""
    while not file.exists():
        time.sleep(0.02)
    return file.name


def two_nodes(cores=1, gpus=0):
    """A cluster of two nodes, of which the first has a core; the second one."""
    node = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **node})
    return cluster, cluster.add_node(num_cpus=cores, num_gpus=gpus, **node)


def kill(cluster, node):
    """Kill a node, first what would tell others that it ends, then its workers."""
    raylet = node.all_processes["raylet"][0].process.pid
    workers = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker), signal.SIGKILL)


def told(ended):
    """What ended, as JSON has it."""
    return {**vars(ended), "error": ended.error and [type(ended.error).__name__, str(ended.error)]}


def main(folder):
    """Print what ended of a list of tasks, and of another while a node dies, and what was running when it did."""
    cluster, second = two_nodes(cores=2, gpus=1)
    wrong = {"refused": DataError("no images: pass --data"), "wrong": ValueError("one line\nand another")}
    tasks = [Task("last", partial(until, folder / "others")), Task("plain", seen), Task("with a GPU", seen, gpu=True)]
    tasks += [Task(name, partial(refuse, error)) for name, error in wrong.items()]
    ended = []
    for one in each(tasks, cluster.address):
        ended.append(told(one))
        if len(ended) == len(tasks) - 1:
            (folder / "others").touch()
    print(json.dumps(ended))  # noqa: T201

    killed = {}

    def watch(running):
        if killed or len(running) < 3:
            return
        killed.update({name: vars(now) for name, now in running.items()})
        kill(cluster, second)
        (folder / "go").touch()

    tasks = [Task(f"task {number}", partial(until, folder / "go")) for number in range(5)]
    print(json.dumps([told(one) for one in each(tasks, cluster.address, watch)]))  # noqa: T201
    print(json.dumps({"killed": killed, "dead": second.node_id[:4]}))  # noqa: T201
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
