"""What every test runs under: caches in a temporary folder, no network, one thread."""

import gc
import os
import socket
import sys
import tempfile
import warnings

# The libraries read these when they are imported.
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="zoo-tests-")
os.environ["OMP_NUM_THREADS"] = "1"  # so many processes run side by side as there are cores
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads of the tests that ask for more don't spin for a core
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

with warnings.catch_warnings():  # older timm uses what newer torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    import timm  # noqa: F401

from zoo.catalog.entry import Base
from zoo.structure.base import initialised

gc.disable()  # what collecting makes stays: see `pytest_collection_finish`
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")  # how long an example takes here says nothing of the code

CNN = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "num_classes": 5})
VIT = Base(
    "timm/vit_tiny_patch16_224",
    {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "num_classes": 5},
)


def pytest_collection_finish():
    """Look for garbage in what the tests make alone."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("ZOO_CATALOG", raising=False)
    if "datasets" in sys.modules:  # it sleeps for so many seconds after a stream that was shuffled
        monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _network():
    """Refuse every connection but those within this machine."""

    def local(method):
        def checked(self, address):
            if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
                raise AssertionError(f"a test connects to {address}: tests run without a network")
            return method(self, address)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, local(getattr(socket.socket, name)))
        yield


def disturbed(base: Base, image: int, seed: int = 0) -> nn.Module:
    """A base whose every tensor matters: norms, biases and running statistics are random too."""
    model = initialised(base, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.data.copy_(0.5 + noise if name.endswith("var") else tensor.data + 0.2 * (noise - 0.5))
    channels = base.args.get("in_chans", 3)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "input_size": (channels, image, image)}
    return model.eval()


@pytest.fixture
def cnn():
    """A residual network of basic blocks, for images 3 x 32 x 32."""
    return disturbed(CNN, 32)


@pytest.fixture
def vit():
    """A transformer of two blocks with three heads of eight, for images 3 x 16 x 16."""
    return disturbed(VIT, 16)


@pytest.fixture
def disturb():
    """The function that makes such a network of any base: (base, image size, seed) → module in eval mode."""
    return disturbed
