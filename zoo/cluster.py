"""Many calls over the nodes of a Ray cluster: a task each, run again where its node dies, handed back as they end.

Nodes run the same checkout, and `ray start` gives each its environment; the command itself runs on one of them. Where
tasks read and write files, these lie in a folder that all nodes see.
"""

import contextlib
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import ClusterError, ZooError, as_cause, first_line, require

TRIES = 4  # of a task whose node or process dies; an error of its own isn't tried again
LOOK = 0.5  # seconds from one look at what runs to the next
PATIENCE = 5.0  # seconds for a cluster to answer, and for tasks to keep what they have when all is called off
Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """One call.

    Args:
        name: unique.
        call: called with a function that tells how far it is in a line; it and what it returns can be pickled.
        gpu: it takes a GPU and its share of the node's cores, where the cluster has GPUs; else a core.
    """

    name: str
    call: Callable[[Say], Any]
    gpu: bool = False


@dataclass(frozen=True)
class Running:
    """Where a task runs: its node, how many times it has begun, and what it said last."""

    node: str
    tries: int
    said: str = ""


@dataclass(frozen=True)
class Ended:
    """What came of a task, a value or why there is none; on which node, and how many times it had begun."""

    name: str
    value: Any = None
    error: ZooError | None = None
    node: str = ""
    tries: int = 0


def each(
    tasks: Sequence[Task], address: str, watch: Callable[[Mapping[str, Running]], None] = lambda running: None
) -> Iterator[Ended]:
    """Run tasks, and give what came of each as soon as it has ended.

    Args:
        tasks: with names of their own.
        address: `HOST:PORT` of the cluster's head; `auto` starts Ray on this machine alone.
        watch: called twice a second with those that run, by name.

    Raises:
        MissingExtra: Ray isn't installed.
        ClusterError: there is no cluster, or it refuses.
    """
    with _connected(address) as ray:
        board = _board(ray)
        gpus, share = _gpus(ray)
        run = ray.remote(max_retries=TRIES - 1)(_run)
        here = os.getcwd()
        left = {
            run.options(num_cpus=share if task.gpu else 1, num_gpus=int(task.gpu and gpus), name=task.name).remote(
                board, task.name, task.call, here
            ): task.name
            for task in tasks
        }
        looked = 0.0
        try:
            while left:
                done, _ = ray.wait([*left], timeout=LOOK)
                if time.monotonic() - looked > LOOK:
                    begun, looked = ray.get(board.all.remote()), time.monotonic()
                    watch({name: begun[name] for name in left.values() if name in begun})
                for ref in done:
                    yield _ended(ray, board, left.pop(ref), ref)
        finally:
            for ref in left:
                ray.cancel(ref)
            if left:
                ray.wait([*left], num_returns=len(left), timeout=PATIENCE)


class _Board:
    """What tasks write of themselves: an actor beside the command."""

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}

    def begun(self, name: str, node: str) -> Running:
        former = self.running.get(name)
        self.running[name] = Running(node, former.tries + 1 if former else 1)
        return self.running[name]

    def said(self, name: str, line: str) -> None:
        former = self.running[name]
        self.running[name] = Running(former.node, former.tries, line)

    def all(self) -> dict[str, Running]:
        return self.running


def _run(board: Any, name: str, call: Callable[[Say], Any], here: str) -> Ended:
    """The task, as its node runs it: in the folder of the command, so that paths mean the same."""
    ray = require("ray", "cluster")
    node = f"{platform.node()} {ray.get_runtime_context().get_node_id()[:4]}"
    begun = ray.get(board.begun.remote(name, node))  # before it can end
    with contextlib.suppress(FileNotFoundError):
        os.chdir(here)
    value, refusal = None, None
    try:
        value = call(lambda line: board.said.remote(name, line) and None)
    except ZooError as error:
        refusal = error
    return Ended(name, value, refusal, begun.node, begun.tries)


def _ended(ray: Any, board: Any, name: str, ref: Any) -> Ended:
    try:
        return ray.get(ref)  # type: ignore[no-any-return]
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        last = ray.get(board.all.remote()).get(name, Running("", 0))
        return Ended(name, None, ClusterError(f"{type(cause).__name__}: {first_line(cause)}"), last.node, last.tries)


def _board(ray: Any) -> Any:
    """The board, on the node of the command: it lives as long as that does."""
    affinity = require("ray.util.scheduling_strategies", "cluster").NodeAffinitySchedulingStrategy
    here = affinity(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()


def _gpus(ray: Any) -> tuple[bool, int]:
    """Whether the cluster has GPUs, and how many cores go with one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [int(each.get("CPU", 1) // each["GPU"]) for each in nodes if each.get("GPU")]
    return bool(shares), max(1, min(shares, default=1))


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # else it asks for minutes
    if address == "auto":  # the name is of other systems, where Ray is for this machine alone
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = require("ray", "cluster")
    worker: Any = require("ray._private.worker", "cluster")
    worker.print_to_stdstream = _unheard
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "auto":
        quiet |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        _check_there(address)
        quiet |= {"address": address}
    try:
        ray.init(**quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"no Ray cluster at {address} that takes this command: {first_line(error)}") from as_cause(
            error
        )
    try:
        yield ray
    finally:
        ray.shutdown()


def _unheard(*told: Any, **how: Any) -> None:
    """What Ray tells of nodes goes to stdout, where results go, and none of its settings says otherwise."""


def _check_there(address: str) -> None:
    """Ask whether anybody answers: Ray itself takes minutes to give up."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"{address} is no address of a Ray cluster: expected HOST:PORT of its head, or auto")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): `ray start --head` starts one, and "
            "--on auto one of this machine alone"
        ) from None
