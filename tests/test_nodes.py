"""One training over two nodes, as `torchrun` starts it, ends in the bits of two processes on one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
SCRIPT = """
import hashlib, os, sys
import accelerate, torch
from forked import forked
from tiny import QUICK, batches, tiny
from zoo.training.distillation import task_step
from zoo.training.trainer import train

def run(rank):
    torch.set_num_threads(1)
    model = train(tiny(), task_step, batches, QUICK)
    values = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    if os.environ["RANK"] == "0":
        print(os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"], hashlib.sha256(values).hexdigest(), flush=True)

if "RANK" in os.environ:
    run(None)
elif any([os.waitpid(child, 0)[1] for child in forked(2, run)]):
    sys.exit("a process failed")
"""


def test_two_nodes_train_to_the_bits_of_two_processes_of_one(tmp_path):
    (tmp_path / "training.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", port]
    surroundings = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "GLOO_SOCKET_IFNAME": "lo"}

    def started(*words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*words, str(tmp_path / "training.py")], env=surroundings, cwd=tmp_path, **pipes)

    def said(process):
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, err[-2000:]
        return out.split()

    nodes = [started(*launch, "--node-rank", rank) for rank in "01"]
    first, second = map(said, nodes)
    world, local, sha256 = said(started(sys.executable))

    assert (first, second) == (["2", "1", sha256], [])  # two processes, one on each node
    assert (world, local) == ("2", "2")
