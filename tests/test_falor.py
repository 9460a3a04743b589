"""Falor: ranks against ptdeco's own, the criterion against its formula, and runs of every method that are killed."""

import copy
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factored import built, images, outputs
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.compression.low_rank import factors as shared
from zoo.compression.low_rank.factors import nsr
from zoo.compression.low_rank.falor import Falor, bisection, falor
from zoo.errors import DataError, StorageError, StructureError, UnknownName
from zoo.measurement.divergence import symmetric_kl
from zoo.structure.tensors import tensors_of

ROOT = Path(__file__).parents[1]


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def convs(stride=1, padding=0):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1, stride=stride, padding=padding),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 8),
    )


@pytest.fixture(autouse=True)
def _one_thread(_surroundings):
    torch.set_num_threads(1)


@pytest.fixture
def digits_vit():
    from zoo.verbs.compressing import calibration

    model = zoo.load("digits_vit")
    return model, calibration(model, "digits", 32)[0].split(16)


class Branch(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return F.relu(x + self.branch(x))


@given(seed=st.integers(0, 99))
def test_the_symmetric_divergence_is_the_mean_of_the_larger_of_both(seed):
    y, found = np.random.default_rng(seed).normal(size=(2, 6, 4)) * 3
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (y, found))
    expected = np.maximum((p * np.log(p / q)).sum(1), (q * np.log(q / p)).sum(1)).mean()
    assert symmetric_kl(torch.tensor(found), torch.tensor(y)).mean().item() == pytest.approx(expected, rel=1e-9)


def test_the_symmetric_divergence_of_saturated_logits_is_finite():
    assert symmetric_kl(torch.tensor([[0.0, 400.0]]), torch.tensor([[400.0, 0.0]])).item() == pytest.approx(400)


@given(full=st.integers(1, 300), least=st.integers(1, 300))
def test_the_search_finds_the_smallest_rank_in_its_reach_that_is_accepted(full, least):
    steps = [full >> i for i in range(1, 10) if full >> i]
    reached = {full - sum(some) for n in range(len(steps) + 1) for some in itertools.combinations(steps, n)}
    tried = []
    found = bisection(full, lambda k: tried.append(k) or k >= least)
    assert found == min((k for k in reached if k >= least), default=full)
    assert len(tried) == int(math.log2(full))


def ptdeco_falor(model, batches, how):
    decomposition = pytest.importorskip("ptdeco.falor")
    theirs = copy.deepcopy(model)
    config = decomposition.decompose_in_place(
        module=theirs,
        device=torch.device("cpu"),
        data_iterator=itertools.cycle(batches),
        blacklisted_module_names=list(how.exclude),
        proportion_threshold=10.0,
        nsr_final_threshold=how.nsr_final_threshold,
        kl_final_threshold=how.kl_final_threshold,
        num_data_steps=len(batches),
        num_metric_steps=len(batches),
        use_float64=True,
        use_mean=False,
        use_damping=True,
    )
    ranks = {
        path: round(part["__meta__"]["proportion"] * min(model.get_submodule(path).weight.shape[:2]))
        for path, part in config.items()
    }
    return theirs, ranks


@pytest.mark.parametrize("threshold", [0.003, 0.045])
@pytest.mark.parametrize("kind", ["digits_vit", "convs"])
def test_ranks_are_those_that_ptdeco_accepts_of_the_same_batches(kind, threshold, request):
    model, batches = request.getfixturevalue(kind) if kind == "digits_vit" else (seeded(convs), images(3, 16))
    between = [
        name
        for name, module in model.named_modules()
        if name.startswith(("blocks.1.", "blocks.2.")) and [*module.parameters()]
    ]
    how = Falor(nsr_final_threshold=threshold, kl_final_threshold=threshold, exclude=between)
    edit, found = falor(model, batches, how)
    theirs, ranks = ptdeco_falor(model, batches, how)
    assert {path: rank.rank for path, rank in edit.layers.items()} == ranks
    assert len(ranks) >= 2
    compared = 0
    for path, k in ranks.items():
        A, B = (found[f"{path}.{i}.weight"].flatten(1).double() for i in (0, 1))
        A_k, B_k = (factor.weight.detach().flatten(1).double() for factor in theirs.get_submodule(path))
        assert A_k.shape[0] in (k, k - 1)  # it builds the last rank tried, not the one accepted
        scale = (B_k @ A_k).norm()
        torch.testing.assert_close((B @ B.T @ B_k @ A_k) / scale, (B_k @ A_k) / scale, atol=2e-3, rtol=0)
        if A_k.shape[0] == k:
            torch.testing.assert_close(B @ A / scale, B_k @ A_k / scale, atol=2e-3, rtol=0)
            compared += 1
    assert compared


def test_each_layer_alone_keeps_the_thresholds_and_one_rank_less_does_not():
    model, batches = seeded(convs), images(3, 16)
    how = Falor(nsr_final_threshold=0.02, kl_final_threshold=0.01, metric_steps=3)
    edit, found = falor(model, batches, how)
    assert edit.layers
    for path, rank in edit.layers.items():
        B = found[f"{path}.1.weight"].flatten(1)

        def moved(k, path=path, B=B):
            alone = copy.deepcopy(model)
            layer = alone.get_submodule(path)
            W = layer.weight.detach().flatten(1)
            layer.weight.data = (B[:, :k] @ B[:, :k].T @ W).reshape(layer.weight.shape)
            pairs = [(outputs(alone, x).double().numpy(), outputs(model, x).double().numpy()) for x in batches]
            noise = np.mean([(((z - y) ** 2).mean(0) / (y.var(0, ddof=1) + 1e-3)).mean() for z, y in pairs])
            divergence = np.mean([symmetric_kl(*map(torch.tensor, each)).mean().item() for each in pairs])
            return noise < 0.02 and divergence < 0.01

        assert moved(rank.rank)
        assert not moved(rank.rank - 1)


def test_one_by_one_convolutions_keep_their_stride_and_padding():
    model, batches = seeded(lambda: convs(stride=2, padding=1)), images(3, 16)
    edit, found = falor(model, batches, Falor(nsr_final_threshold=1e-1, kl_final_threshold=1e-1))
    assert set(edit.layers) == {"2", "5", "9"}
    smaller = built(model, edit, found)
    save(found)
    x = batches[0]
    expected = outputs(model[:3], x)
    torch.testing.assert_close(outputs(smaller[:3], x).shape, expected.shape)
    W_k = found["2.1.weight"].flatten(1) @ found["2.0.weight"].flatten(1)
    y = F.conv2d(outputs(model[:2], x), W_k[..., None, None], model[2].bias, stride=2, padding=1)
    torch.testing.assert_close(outputs(smaller[:3], x), y)


def test_a_layer_that_is_excluded_saves_nothing_or_is_always_zero_stays_dense():
    model, batches = seeded(convs), images(3, 16)
    loose = Falor(nsr_final_threshold=9.0, kl_final_threshold=9.0, exclude=["9"])
    assert list(falor(model, batches, loose)[0].layers) == ["2", "5"]
    model[4] = Branch(nn.Conv2d(32, 32, 1, bias=False))
    model[4].branch.weight.data.zero_()
    assert list(falor(model, batches, loose)[0].layers) == ["2", "5"]
    for strict in (Falor(1e-12, 9.0), Falor(9.0, 1e-12)):
        edit, found = falor(model, batches, strict)
        assert not edit.layers
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors_of(model).items())


BAD = {
    "no batches": (lambda: ([], {}), DataError, "no images"),
    "one image": (lambda: (images(2, 1), {}), DataError, "batch 0 has 1 image"),
    "images all the same": (lambda: ([torch.zeros(4, 3, 8, 8)] * 2, {}), DataError, "the same for every image"),
    "not finite": (lambda: ([torch.full((4, 3, 8, 8), math.nan)], {}), DataError, "aren't finite"),
    "unknown layer": (lambda: (images(), {"exclude": ["trunk"]}), UnknownName, "exclude names 'trunk'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_leaves_the_model_and_the_disk_as_they_were(kind, tmp_path):
    make, error, message = BAD[kind]
    batches, options = make()
    model = seeded(convs)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    with pytest.raises(error, match=message) as caught:
        falor(model, batches, Falor(**options), state=tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    assert not list(tmp_path.iterdir())


def test_activations_that_are_not_finite_name_the_layer():
    class Hidden(nn.Module):
        def forward(self, x):
            return x.nan_to_num(0.0, 0.0, 0.0)

    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), Hidden(), nn.Linear(8, 4)))
    model[1].weight.data[0] = math.inf
    with pytest.raises(DataError, match="output of 1 isn't finite"):
        falor(model, images())


@pytest.mark.parametrize(
    "options",
    [{"nsr_final_threshold": 0}, {"kl_final_threshold": math.nan}, {"data_steps": 0}, {"metric_steps": 1.5}],
)
def test_a_declaration_outside_its_range_is_refused(options):
    with pytest.raises(DataError, match=f"falor: {next(iter(options))} is"):
        Falor(**options)


def test_outputs_that_are_not_logits_are_refused():
    with pytest.raises(StructureError, match=r"outputs are \[8, 16, 8, 8\]"):
        falor(seeded(convs)[:1], images())


def test_the_model_is_as_it_was_when_the_search_is_interrupted(tmp_path, monkeypatch):
    model, batches = seeded(convs), images()
    expected = falor(model, batches)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return nsr(*args)

    monkeypatch.setattr(shared, "nsr", interrupted)
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        falor(model, batches, state=state)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    assert not any(m._forward_hooks for m in model.modules())
    with safe_open(state, "pt") as file:
        done = json.loads(file.metadata()["found"])
    assert 0 < len(done) < 3
    edit, found = falor(model, batches, state=state)
    assert edit == expected[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected[1].items())
    with pytest.raises(DataError, match="belongs to another run"):
        falor(model, batches, Falor(data_steps=1), state=state)
    state.write_text("{")
    with pytest.raises(StorageError, match="can't be resumed from"):
        falor(model, batches, state=state)


# Each method is run whole, and run again in a process that is killed when its state has been written twice, with every
# forward pass slowed down, and then once more. The script forks what it has imported.
SCRIPT = """
import os, pathlib, signal, sys, time
import accelerate, torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from zoo.compression.low_rank.dwain import Dwain, dwain
from zoo.compression.low_rank.falor import falor
from zoo.compression.low_rank.lockd import Lockd, lockd
from zoo.training.schedule import Schedule

torch.set_num_threads(1)
schedule = Schedule(epochs=2, batch_size=8, lr=0.3, weight_decay=0.0, checkpoint_seconds=0)

def run(method, folder, slow):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    x, y = torch.randn(32, 3, 4, 4), torch.randint(0, 8, (32,))
    batches = list(zip(x.split(8), y.split(8)))
    passes = []
    model.register_forward_pre_hook(lambda *_: (passes.append(1), time.sleep(slow)) and None)
    data = lambda epoch: DataLoader(list(zip(x, y.tolist())), 8, generator=torch.Generator())
    state = folder / "state"
    if method == "falor":
        edit, found = falor(model, x.split(8), state=state)
    elif method == "lockd":
        how = Lockd(nsr_threshold=0.3, initial_logit=0.5, proportion_threshold=1.0)
        edit, found = lockd(model, data, how, schedule, state=state)
    else:
        how = Dwain(min_rank=2, trade_off_factor=9.0, max_accepted_ppl_diff=9.0, nsr_final_threshold=9.0)
        edit, found = dwain(model, batches, data, how, schedule, state=state)
    save_file(found, folder / "found.safetensors", {"edit": repr(edit), "passes": str(len(passes))})

def start(method, folder, slow):
    if (child := os.fork()) == 0:
        failed = True
        try:
            sys.stderr = open(folder / "stderr", "w")
            run(method, folder, slow)
            failed = False
        except BaseException:
            import traceback
            traceback.print_exc(file=sys.__stderr__)
        finally:
            sys.__stderr__.flush()
            os._exit(failed)
    return child

for method in ("falor", "lockd", "dwain"):
    whole, killed = (pathlib.Path(sys.argv[1]) / f"{method}_{how}" for how in ("whole", "killed"))
    whole.mkdir(), killed.mkdir()
    assert os.waitpid(start(method, whole, 0.0), 0)[1] == 0
    child, seen = start(method, killed, 0.02), set()
    while len(seen) < 2:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
        time.sleep(0.001)
        if (killed / "state").exists():
            seen.add((killed / "state").stat().st_mtime_ns)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (killed / "found.safetensors").exists()
    assert os.waitpid(start(method, killed, 0.0), 0)[1] == 0
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("method", ["falor", "lockd", "dwain"])
def test_a_killed_run_that_is_started_again_goes_on_and_ends_in_the_same_bits(method, runs):
    from safetensors import safe_open

    whole, killed = (runs / f"{method}_{how}" / "found.safetensors" for how in ("whole", "killed"))
    expected, found = load_file(whole), load_file(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())
    said = []
    for path in (whole, killed):
        with safe_open(path, "pt") as file:
            said.append(file.metadata())
    assert "Rank(" in said[0]["edit"]
    assert said[0]["edit"] == said[1]["edit"]
    assert int(said[1]["passes"]) < int(said[0]["passes"])
