"""Refinement: what some steps on calibration images alone do to a model, and what they leave alone."""

import copy
import json
import re
import signal

import pytest
import torch
from torch import nn

import zoo
from zoo.catalog.entry import Budget
from zoo.cli import making
from zoo.compression import refinement
from zoo.compression.calibration import parted
from zoo.compression.refinement import Relative, refine_, shared, units_of, views
from zoo.errors import DataError
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import graph_module
from zoo.structure.graph.tracing import export
from zoo.structure.tensors import assign_
from zoo.verbs.building import make
from zoo.verbs.recipes import recipe_for

IMAGES = list(torch.randn(6, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).unbind())


class Net(nn.Module):
    """Two convolutions, the second one with a batch norm or with a bias, and a head."""

    def __init__(self, norms=True):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, bias=not norms)
        self.norm = nn.BatchNorm2d(8) if norms else nn.Identity()
        self.head = nn.Linear(8, 5)
        if norms:
            self.norm.weight.data.uniform_(0.5, 2)
            self.norm.bias.data.normal_(0, 0.3)
            self.norm.running_mean.normal_(0, 0.3)
            self.norm.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x):
        return self.head(self.norm(self.b(self.a(x).relu())).relu().mean((2, 3)))


def nudged(model, by=0.3):
    """Return another model not far away."""
    found, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in found.parameters():
            weight += by * weight.std() * torch.randn(weight.shape, generator=generator)
    return found


def refined(model, dense, steps=30, **options):
    found = copy.deepcopy(model)
    return found, refine_(found, dense, *parted(IMAGES), steps, **options)


def nats(model, dense, batches):
    with torch.no_grad():
        q, p = (torch.cat([each(batch) for batch in batches]).double().log_softmax(1) for each in (model, dense))
    return (p.exp() * (p - q)).sum(1).mean().item()


def test_a_model_comes_nearer_to_the_dense_one_on_images_that_it_was_not_shown():
    dense = Net()
    model = nudged(dense)
    found, (before, after) = refined(model, dense, 240)
    _, held = parted(IMAGES)
    assert before == pytest.approx(nats(model, dense, held))
    assert after == pytest.approx(nats(found, dense, held), rel=1e-5)
    assert after < 0.8 * before
    fresh = list(torch.randn(4, 16, 3, 8, 8, generator=torch.Generator().manual_seed(9)).unbind())
    assert nats(found, dense, fresh) < 0.8 * nats(model, dense, fresh)


def test_a_model_that_comes_no_nearer_stays_as_it_was_bit_for_bit():
    dense = Net()
    found, (before, after) = refined(dense, dense)
    assert (before, after) == (0, 0)
    assert all(map(torch.equal, dense.state_dict().values(), found.state_dict().values()))


def test_batch_norms_keep_their_statistics_and_weights_their_zeros():
    dense = Net()
    model = nudged(dense)
    with torch.no_grad():
        model.b.weight *= torch.rand(model.b.weight.shape) < 0.5
    found, (before, after) = refined(model, dense, 240)
    assert after < before
    assert torch.equal(model.norm.running_mean, found.norm.running_mean)
    assert torch.equal(model.norm.running_var, found.norm.running_var)
    assert torch.equal(model.b.weight == 0, found.b.weight == 0)
    assert not found.training


def test_it_makes_no_difference_in_which_order_and_batches_images_come():
    dense = Net()
    model = nudged(dense)
    images = torch.cat(IMAGES)
    other = images[torch.randperm(len(images))].split(7)
    outcomes = []
    for batches in (IMAGES, other):
        found = copy.deepcopy(model)
        refine_(found, dense, *parted(batches), 5)
        outcomes.append(found.state_dict())
    assert all(map(torch.equal, *(outcome.values() for outcome in outcomes)))


def test_it_makes_no_difference_whether_a_batch_norm_is_folded():
    dense = Net().double()
    model, folded = nudged(dense), Net(norms=False).double()
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    with torch.no_grad():
        folded.a.load_state_dict(model.a.state_dict())
        folded.b.weight.copy_(model.b.weight * scale[:, None, None, None])
        folded.b.bias.copy_(model.norm.bias - scale * model.norm.running_mean)
        folded.head.load_state_dict(model.head.state_dict())
    images = [batch.double() for batch in IMAGES]
    with torch.no_grad():
        torch.testing.assert_close(model(images[0]), folded(images[0]))
    for each in (model, folded):
        before, after = refine_(each, dense, *parted(images), 20)
        assert after < before
    with torch.no_grad():
        torch.testing.assert_close(model(images[0]), folded(images[0]))


def test_a_graph_is_refined_as_the_module_that_it_was_written_from():
    dense = Net().double()
    model, images = nudged(dense), [batch.double() for batch in IMAGES]
    program = export(model, images[0])
    graph, tensors = lift(program, {**dict(model.named_parameters()), **dict(model.named_buffers())})
    twin = assign_(
        graph_module(graph), {path: tensor.detach().clone() for path, tensor in tensors.items()}, "twin"
    ).eval()
    assert shared(twin, dense, images[0]) == shared(model, dense, images[0]) == ["a", "b", "head"]
    for each in (model, twin):
        refine_(each, dense, *parted(images), 20)
    with torch.no_grad():
        torch.testing.assert_close(model(images[0]), twin(images[0]))


def test_a_rate_is_the_share_by_which_rows_move_in_a_step():
    """Adam's first step is of the rate's length in each number, whatever the gradient."""
    model = Relative(Net(), units_of(Net(), IMAGES[0]))
    before, rate = {path: tensor.detach() for path, tensor in model.tensors().items()}, 1e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, eps=0)
    model(IMAGES[0]).square().sum().backward()
    optimizer.step()
    for path, tensor in model.tensors().items():
        moved, was = (tensor - before[path]).flatten(1).norm(dim=1) if tensor.ndim > 1 else None, before[path]
        if moved is not None:
            torch.testing.assert_close(
                moved / was.flatten(1).norm(dim=1), torch.full((len(was),), rate), rtol=1e-3, atol=0
            )


def test_layers_are_compared_that_read_as_much_as_before():
    class Hidden(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, width, 1), nn.Conv2d(width, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    assert shared(Hidden(5), Hidden(6), IMAGES[0]) == ["a", "c"]
    pair = Hidden(6)
    pair.b = nn.Sequential(nn.Conv2d(6, 2, 1), nn.Conv2d(2, 4, 1))
    assert shared(pair, Hidden(6), IMAGES[0]) == ["a", "b", "c"]


def test_views_are_images_shifted_by_an_eighth_at_most_and_mirrored_every_second_time():
    torch.manual_seed(0)
    columns = torch.arange(32.0).expand(64, 1, 32, 32)
    for ramp, mirrored in ((columns, True), (columns.transpose(2, 3), False)):
        seen = views(ramp) if mirrored else views(ramp).transpose(2, 3)
        assert torch.equal(seen, seen[:, :, :1].expand_as(seen))
        lines = seen[:, 0, 0]
        steps = lines[:, 16] - lines[:, 15]
        assert 16 < (steps == -1).sum() < 48 if mirrored else (steps == 1).all()
        lines = torch.where(steps[:, None] < 0, lines.flip(1), lines)
        shifts = lines[:, 16] - 16
        assert sorted(set(shifts.tolist())) == list(range(-4, 5))
        for line, shift in zip(lines, shifts.tolist(), strict=True):
            padded = torch.nn.functional.pad(torch.arange(32.0)[None], (4, 4), "reflect")[0]
            assert torch.equal(line, padded[4 + int(shift) :][:32])


def test_one_image_in_four_is_held_back_and_too_few_are_refused():
    shown, held = parted(IMAGES)
    every = torch.cat([*shown, *held]).flatten(1)
    assert (sum(map(len, shown)), sum(map(len, held))) == (36, 12)
    assert sorted(every.sum(1).tolist()) == pytest.approx(sorted(torch.cat(IMAGES).flatten(1).sum(1).tolist()))
    with pytest.raises(DataError, match="calibration: 7 images, expected at least 16 where some are held back"):
        parted([IMAGES[0][:7]])


def test_it_needs_no_gradients_of_whoever_asks_for_it():
    dense = Net()
    model, alone = nudged(dense), nudged(dense)
    with torch.no_grad():
        refine_(model, dense, *parted(IMAGES), 5)
    refine_(alone, dense, *parted(IMAGES), 5)
    assert all(map(torch.equal, alone.state_dict().values(), model.state_dict().values()))


def test_ctrl_c_leaves_a_model_as_it_was(monkeypatch):
    dense = Net()
    model = nudged(dense)
    before, seen = copy.deepcopy(model.state_dict()), []

    def pressed(images):
        seen.append(images)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return images

    monkeypatch.setattr(refinement, "views", pressed)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        refine_(model, dense, *parted(IMAGES), 30)
    signal.signal(signal.SIGINT, former)
    assert len(seen) == 3
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


SOME = list(torch.randn(2, 16, 1, 32, 32, generator=torch.Generator().manual_seed(3)).unbind())


@pytest.mark.parametrize(
    ("method", "options"),
    [("low_rank", {"budget": 0.5}), ("falor", {"data_steps": 1})],
)
def test_it_follows_a_method_and_brings_its_model_nearer_on_images_that_neither_saw(method, options):
    dense = zoo.load("digits_cnn")
    model = zoo.compress(dense, data=SOME, method=method, **options, calibrate_steps=12)
    shown, held = parted(SOME)
    alone = zoo.compress(dense, data=shown, method=method, **options)
    assert model.zoo_entry.plan == alone.zoo_entry.plan
    assert nats(model, dense, held) <= nats(alone, dense, held)
    assert model.zoo_entry.recipe["options"]["calibrate_steps"] == 12
    assert "calibrate_steps" not in alone.zoo_entry.recipe["options"]


def test_a_recipe_says_it_and_is_followed_to_the_same_bytes(tmp_path):
    options = ["--budget", "0.5", "--data", "digits[:64]", "--calibrate-steps", "3"]
    line = ["digits_cnn", "--method", "low_rank", *options, "--out", str(tmp_path / "line")]
    making.compress.main(line, standalone_mode=False)
    recipe = json.loads((tmp_path / "line" / "config.json").read_text())["zoo"]["recipe"]
    assert recipe["options"] == {"calibrate_steps": 3}
    entry, said = recipe_for("digits_cnn", "low_rank", Budget(0.5), "digits[:64]", 0, recipe["options"]), []
    make(entry, tmp_path / "again", say=said.append)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("line", "again"))
    assert first == second
    assert re.fullmatch(r"3 low_rank; then calibrate, 3 steps of 16 images: at most about \S+ s here", said[3])


def test_what_it_is_said_must_be_a_count():
    with pytest.raises(DataError, match="prune: calibrate_steps is -1, expected a whole number of at least 0"):
        zoo.compress(zoo.load("digits_cnn"), data=SOME, budget=0.5, calibrate_steps=-1)
