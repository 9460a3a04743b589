"""Dwain: ranks against ptdeco's own, what is trained in between and what never is, and bad input."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from zoo.compression.low_rank import dwain as module
from zoo.compression.low_rank.dwain import Dwain, dwain
from zoo.errors import DataError, StorageError, UnknownName
from zoo.structure.tensors import tensors_of
from zoo.training.schedule import Schedule

UNTRAINED = Schedule(epochs=0, batch_size=8)
SHORT = Schedule(epochs=3, steps=6, batch_size=8, lr=0.01, warmup=0.0)
LOOSE = {"trade_off_factor": 50.0, "max_accepted_ppl_diff": 50.0, "nsr_final_threshold": 50.0, "min_rank": 2}


@pytest.fixture(autouse=True)
def _one_thread(_surroundings):
    torch.set_num_threads(1)


def network(stride=1, padding=0):
    """A network that has learnt its labels a little."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 1, stride=stride, padding=padding, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.LazyLinear(32),
            nn.ReLU(),
            nn.Linear(32, 16),
            nn.ReLU(),
            nn.Linear(16, 8),
        )
        x, y = examples()
        model(x)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def examples(count=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 4, 4, generator=generator), torch.randint(0, 8, (count,), generator=generator)


def batches(size=16):
    x, y = examples()
    return list(zip(x.split(size), y.split(size), strict=True))


def loader(epoch):
    x, y = examples()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
    return DataLoader([(x[i], int(y[i])) for i in order], 8, generator=torch.Generator())


def built(model, edit, found):
    smaller = copy.deepcopy(model)
    edit.apply_(smaller)
    assert found.keys() == tensors_of(smaller).keys()
    for name, tensor in tensors_of(smaller).items():
        assert tensor.shape == found[name].shape
        tensor.data.copy_(found[name])
    return smaller.eval()


def loss(model):
    x, y = examples()
    with torch.no_grad():
        return F.cross_entropy(model.eval()(x), y).item()


class OfDictionaries(nn.Module):
    """What ptdeco's dwain takes."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return self.net(batch["inputs"])


@pytest.mark.parametrize("trade_off_factor", [0.1, 0.5, 1.0])
def test_ranks_are_those_that_ptdeco_accepts_of_the_same_batches(trade_off_factor):
    ptdeco = pytest.importorskip("ptdeco.dwain")
    model = network()
    how = Dwain(trade_off_factor=trade_off_factor, nsr_final_threshold=1e9, min_rank=2, exclude=["0"])
    edit, found = dwain(model, batches(), loader, how, UNTRAINED)
    theirs = OfDictionaries(copy.deepcopy(model))
    dictionaries = itertools.cycle([{"inputs": x, "targets": y} for x, y in batches()])
    config = ptdeco.decompose_in_place(
        module=theirs,
        device=torch.device("cpu"),
        data_iterator=dictionaries,
        loss_fn=lambda batch, y: F.cross_entropy(y, batch["targets"]),
        num_data_steps=4,
        metric_iterator=dictionaries,
        num_metric_steps=4,
        blacklisted_module_names=["net.0"],
        nsr_final_threshold=1e9,
        ppl_diff_threshold=0.1,
        finetune_fn=lambda model, device, names: model,
        min_rank=2,
        trade_off_factor=trade_off_factor,
    )
    ranks = {path.removeprefix("net."): part["modules"]["0"] for path, part in config.items()}
    ranks = {path: part.get("out_features") or part["out_channels"] for path, part in ranks.items()}
    assert len(ranks) >= 2
    assert {path: rank.rank for path, rank in edit.layers.items()} == ranks
    assert list(edit.layers) == list(ranks), "the last layer comes first"
    x, _ = examples()
    with torch.no_grad():
        torch.testing.assert_close(built(model, edit, found)(x), theirs.net(x), atol=1e-4, rtol=1e-3)


def test_a_larger_trade_off_takes_more_away():
    model = network()
    sizes = []
    for factor in (1e-9, 0.3, 50.0):
        how = Dwain(**{**LOOSE, "trade_off_factor": factor})
        sizes.append(sum(t.numel() for t in dwain(model, batches(), loader, how, UNTRAINED)[1].values()))
    assert sizes[0] <= sum(tensor.numel() for tensor in tensors_of(model).values())
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("limit", ["max_accepted_ppl_diff", "nsr_final_threshold"])
def test_each_of_the_other_limits_alone_keeps_layers_dense(limit):
    how = Dwain(**{**LOOSE, limit: 1e-12})
    kept, found = dwain(network(), batches(), loader, how, UNTRAINED)
    assert not kept.layers
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors_of(network()).items())


@pytest.mark.parametrize(
    ("full", "factor", "least", "expected"),
    [(64, 0.5, 4, [32, 16, 8, 4]), (48, 0.5, 32, []), (100, 0.9, 60, [90, 81, 72, 64]), (1, 0.5, 1, [])],
)
def test_ranks_fall_geometrically_and_none_is_below_the_least(full, factor, least, expected):
    assert list(Dwain(reduction_factor=factor, min_rank=least).ranks(full)) == expected


def test_training_in_between_changes_factors_alone_and_lowers_the_loss():
    model = network()
    how = Dwain(**LOOSE)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    state = torch.get_rng_state()
    model.train()
    edit, found = dwain(model, batches(), loader, how, SHORT)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    untrained = built(model, *dwain(model, batches(), loader, how, UNTRAINED))
    trained = built(model, edit, found)
    assert loss(trained) < loss(untrained) - 0.1
    factors = [f"{path}." for path in edit.layers]
    for name, tensor in found.items():
        if not name.startswith(tuple(factors)):
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("last", "expected"), [(None, [1, 2, 3]), (2, [1, 2, 2])])
def test_the_layers_replaced_last_are_trained_each_time_on_other_batches(last, expected, monkeypatch):
    trained, numbers = [], []

    def seen(model, step, data, schedule, **options):
        trained.append({name.rpartition(".")[0][:-2] for name, p in model.named_parameters() if p.requires_grad})
        for epoch in range(schedule.epochs):
            data(epoch)
        return model

    def counted(epoch):
        numbers.append(epoch)
        return loader(epoch)

    monkeypatch.setattr(module, "train", seen)
    how = Dwain(**LOOSE, finetune_last=last, exclude=["0"])
    edit, _ = dwain(network(), batches(), counted, how, SHORT)
    order = list(edit.layers)
    assert order[:3] == ["9", "7", "3"]
    assert [len(paths) for paths in trained[:3]] == expected
    assert all(paths <= set(order[: i + 1]) and order[i] in paths for i, paths in enumerate(trained))
    assert len(set(numbers)) == len(numbers) == 3 * len(order)


def test_one_by_one_convolutions_keep_their_stride_and_padding():
    model = network(stride=2, padding=1)
    edit, found = dwain(model, batches(), loader, Dwain(**LOOSE), UNTRAINED)
    assert "3" in edit.layers
    smaller, (x, _) = built(model, edit, found), examples()
    assert smaller[:4](x).shape == model[:4](x).shape
    (first, last), y = smaller[3], smaller[:3](x)
    W_k = last.weight.flatten(1) @ first.weight.flatten(1)
    torch.testing.assert_close(smaller[3](y), F.conv2d(y, W_k[..., None, None], stride=2, padding=1))


def nothing(epoch):
    return DataLoader([], 8)


BAD = {
    "no batches": ([], {}, DataError, "no images"),
    "one image": (batches(1), {}, DataError, "batch 0 has 1 image"),
    "all the same": ([(torch.zeros(8, 3, 4, 4), torch.arange(8))], {}, DataError, "the same for every image"),
    "not finite": ([(torch.full((8, 3, 4, 4), math.nan), torch.arange(8))], {}, DataError, "aren't finite"),
    "a class too many": ([(examples(8)[0], torch.arange(1, 9))], {}, DataError, "labels 1 to 8, expected 0 to 7"),
    "a label too few": ([(examples(8)[0], torch.arange(7))], {}, DataError, r"labels \[7\], expected \[8\]"),
    "unknown layer": (batches(), {"exclude": ["trunk"]}, UnknownName, "exclude names 'trunk'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_leaves_the_model_and_the_disk_as_they_were(kind, tmp_path):
    given, options, error, message = BAD[kind]
    model = network()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    with pytest.raises(error, match=message) as caught:
        dwain(model, given, loader, Dwain(**options), SHORT, state=tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    assert not list(tmp_path.iterdir())


def test_no_training_data_is_an_error_and_leaves_the_model_as_it_was():
    model = network()
    with pytest.raises(DataError, match="not one whole batch"):
        dwain(model, batches(), nothing, Dwain(**LOOSE), SHORT)
    assert all(
        torch.equal(a, b) for a, b in zip(tensors_of(network()).values(), tensors_of(model).values(), strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"trade_off_factor": 0},
        {"max_accepted_ppl_diff": math.nan},
        {"reduction_factor": 1.0},
        {"min_rank": 0},
        {"finetune_last": 0},
        {"metric_steps": None},
    ],
)
def test_a_declaration_outside_its_range_is_refused(options):
    with pytest.raises(DataError, match=f"dwain: {next(iter(options))} is"):
        Dwain(**options)


def test_an_interrupted_run_goes_on_and_another_run_does_not(tmp_path, monkeypatch):
    model, how, state = network(), Dwain(**LOOSE), tmp_path / "state"
    expected = dwain(model, batches(), loader, how, SHORT)
    trainings = []

    def interrupted(*args, **options):
        trainings.append(1)
        if len(trainings) == 3:
            raise KeyboardInterrupt
        return train(*args, **options)

    train = module.train
    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dwain(model, batches(), loader, how, SHORT, state=state)
    edit, found = dwain(model, batches(), loader, how, SHORT, state=state)
    assert len(trainings) == len(edit.layers) + 1, "what was done isn't done again"
    assert edit == expected[0]
    assert list(edit.layers) == list(expected[0].layers)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected[1].items())
    with pytest.raises(DataError, match="belongs to another run"):
        dwain(model, batches(), loader, how, SHORT, seed=1, state=state)
    state.write_bytes(b"{")
    with pytest.raises(StorageError, match="can't be resumed from"):
        dwain(model, batches(), loader, how, SHORT, state=state)
