"""huggingface_hub in this process, pointed at a server as its environment variables would before it is imported."""

import atexit
import functools
import os
import socket

import pytest
import torch
from hub import ask, commit, create, large, regular
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

import zoo
from zoo import catalog
from zoo.cli import main

SMALL, OTHER = catalog.EMBEDDED / "digits_vit_pruned_25", catalog.EMBEDDED / "digits_cnn_pruned_25"
LARGE = catalog.EMBEDDED / "digits_vit"  # than what its server takes
FILES = ["README.md", "config.json", "model.safetensors", "results.json"]
SECONDS = 3.0  # until an error is said
disable_progress_bars()


def point(monkeypatch, address, folder, offline=False):
    """Ask that address from now on, with caches of its own in a folder."""
    values = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("ZOO_CACHE", str(folder / "zoo"))


def environment(address, folder):
    """The same for another process."""
    own = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder / "hf"),
        "ZOO_CACHE": str(folder / "zoo"),
        "HF_HUB_OFFLINE": "0",
    }
    return {**os.environ, **own, "HF_HUB_DISABLE_TELEMETRY": "1"}


@functools.cache
def dead():
    """An address at which nobody listens: its port is taken, so that nobody else can."""
    taken = socket.socket()
    atexit.register(taken.close)
    taken.bind(("127.0.0.1", 0))
    return f"http://127.0.0.1:{taken.getsockname()[1]}"


def faults(address, **what):
    """Let things go wrong from now on, and count requests from none."""
    assert ask(address, "PUT", "/-/faults", what).status == 200


def requests(address):
    """What was asked since: (method, path)."""
    return [(method, path) for method, path, *_ in ask(address, "GET", "/-/faults").json()]


def publish(address, name, folder, files=None, token=None, **options):
    """A repository made without the code under test: its commit's hash."""
    assert create(address, name, token=token, **options).status == 200
    return add(address, name, folder, files, token)


def add(address, name, folder, files=None, token=None):
    """Another commit with the files of a folder."""
    lines = []
    for path in sorted(folder.iterdir()):
        if files is None or path.name in files:
            data = path.read_bytes()
            binary = path.suffix == ".safetensors"
            lines.append(large(address, name, path.name, data, token) if binary else regular(path.name, data.decode()))
    return commit(address, name, *lines, token=token).json()["commitOid"]


def command(capsys, *arguments):
    """The command line in this process: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


def outputs(model):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(torch.rand(2, *model.pretrained_cfg["input_size"]))


def same(model, folder):
    """Whether a model computes, bit for bit, what that of a folder does."""
    return torch.equal(outputs(model), outputs(zoo.load(folder)))


def left(cache):
    """What a fetch left in its cache that isn't a whole file of the two repositories."""
    known = {path.read_bytes() for folder in (SMALL, OTHER) for path in folder.iterdir()}
    blobs = (cache / "hub").glob("models--*/blobs/*")
    return [path.name for path in blobs if path.read_bytes() not in known]
