"""The average of the weights, and how training runs on a machine: parts, precision, layout, compilation, trackers."""

import re
from dataclasses import replace

import accelerate
import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from tiny import QUICK, batches, same, tiny
from torch import nn

from zoo.errors import DataError, MissingExtra
from zoo.training import ema
from zoo.training.accelerated import synchronised
from zoo.training.distillation import task_step
from zoo.training.schedule import Machine, Schedule, learning_rate
from zoo.training.trainer import _speed, train

# The average, and what only the machine cares about.


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_its_closed_form(decay):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    average, history = ema.started(model), [model[0].weight.detach().clone()]
    for step in range(1, 7):
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(2, 3, dtype=torch.float64))
            model[1].num_batches_tracked.fill_(step)
        history.append(model[0].weight.detach().clone())
        ema.update_(average, model, decay)
    expected = decay**6 * history[0] + (1 - decay) * sum(decay ** (6 - i) * history[i] for i in range(1, 7))
    torch.testing.assert_close(average["0.weight"], expected)
    assert average["1.num_batches_tracked"] == 6


def test_training_with_an_average_returns_it_and_evaluates_it_but_goes_on_from_the_weights():
    decay, weights, evaluated = 0.8, [], []
    model = tiny()

    def step(model, batch, progress):
        weights.append(model[1].weight.detach().clone())
        return task_step(model, batch, progress)

    def evaluation():
        evaluated.append(model[1].weight.detach().clone())
        return {"top1": 0.0}

    trained = train(model, step, batches, Schedule(epochs=2, batch_size=4, ema=decay), evaluate=evaluation)
    plain = tiny()
    train(plain, task_step, batches, Schedule(epochs=2, batch_size=4))
    weights.append(plain[1].weight.detach())
    n = len(weights) - 1
    expected = decay**n * weights[0] + (1 - decay) * sum(decay ** (n - i) * weights[i] for i in range(1, n + 1))
    torch.testing.assert_close(trained[1].weight.detach(), expected)
    assert torch.equal(evaluated[-1], trained[1].weight)
    assert not torch.equal(evaluated[0], weights[6]), "the average, not the weights of that step"


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_a_batch_in_parts_is_the_whole_batch(accumulation):
    """In double precision, without batch norm and dropout; three parts of eight images are of unlike size."""

    def trained(machine):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4)).double()

        def step(model, batch, progress):
            return task_step(model, (batch[0].double(), batch[1]), progress)

        return train(model, step, lambda epoch: batches(epoch, size=8), Schedule(2, batch_size=8), machine=machine)

    whole, parts = trained(Machine()), trained(Machine(accumulation=accumulation))
    for expected, found in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_parts_are_as_many_as_were_asked_for():
    seen = []
    train(
        tiny(),
        lambda model, batch, progress: seen.append(len(batch[0])) or task_step(model, batch, progress),
        lambda epoch: batches(epoch, size=8),
        Schedule(1, batch_size=8, steps=1),
        machine=Machine(accumulation=3),
    )
    assert seen == [3, 3, 2]


def test_channels_last_changes_the_layout_and_hardly_the_result():
    def trained(machine):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
        return train(model, task_step, batches, QUICK, machine=machine)

    usual, last = trained(Machine()), trained(Machine(channels_last=True))
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    for expected, found in zip(usual.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_mixed_precision_computes_in_it_and_leaves_the_model_as_it_was():
    dtypes = []
    model = tiny()
    model[1].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    train(model, task_step, batches, QUICK, machine=Machine("bf16"))
    assert set(dtypes) == {torch.bfloat16}
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    model(torch.randn(2, 3, 2, 2))
    assert dtypes[-1] == torch.float32
    train(tiny(), task_step, batches, QUICK)  # the precision of one run isn't the next one's


def test_batch_norms_are_put_back_with_what_they_learned_and_keep_their_names():
    """Of timm's with an activation, of torch's, and of one that stands in two places."""
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), shared, nn.Sequential(shared), nn.GELU()).train()
    model(torch.randn(8, 3, 2, 2))
    before, modules = {name: value.clone() for name, value in model.state_dict().items()}, list(model.modules())
    image = torch.randn(2, 3, 2, 2)
    expected = model.eval()(image)
    with synchronised(model, torch.device("cuda")):
        assert [type(model[index]) for index in (1, 2)] == [SyncBatchNormAct, nn.SyncBatchNorm]
        assert same(before, model.state_dict())
        assert torch.equal(model(image), expected)
        assert model[1].weight is modules[2].weight
        with torch.no_grad():
            model[1].weight.add_(1)
            model[2].running_mean.add_(1)
    assert list(model.modules()) == modules
    changed = {name: before[name] + 1 for name in ("1.weight", "2.running_mean", "3.0.running_mean")}
    assert same({**before, **changed}, model.state_dict())


def test_batch_norm_cannot_be_synchronised_without_a_gpu_and_need_not_be_on_one_process():
    with (
        pytest.raises(DataError, match="machine: sync_bn needs a GPU, this is cpu: leave it out, or train on one"),
        synchronised(tiny(), torch.device("cpu")),
    ):
        pass
    assert same(
        train(tiny(), task_step, batches, QUICK).state_dict(),
        train(tiny(), task_step, batches, QUICK, machine=Machine(sync_bn=True)).state_dict(),
    )


def test_a_tracker_that_is_not_there_is_named():
    with pytest.raises(
        MissingExtra, match=r"tracker 'nowhere' isn't one that accelerate finds here: pip install nowhere"
    ):
        train(tiny(), task_step, batches, QUICK, machine=Machine(log_with="nowhere"))


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Machine("fp8"), "machine: precision is 'fp8', expected one of no, fp16, bf16"),
        (lambda: Machine(accumulation=0), "machine: accumulation is 0, expected a whole number of at least 1"),
        (lambda: Machine(workers=-1), "machine: workers is -1, expected a whole number of at least 0"),
        (lambda: Schedule(ema=1.0), "schedule: ema is 1.0, expected a number of at least 0, below 1"),
        (lambda: Schedule(epochs=1.5), "schedule: epochs is 1.5, expected a whole number of at least 0"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(declare, message):
    with pytest.raises(DataError, match=re.escape(message)):
        declare()


def test_a_state_is_resumed_on_another_machine_but_not_in_another_precision(tmp_path):
    state = tmp_path / "state"
    train(tiny(), task_step, batches, QUICK, state=state)
    other = Machine(accumulation=2, channels_last=True)
    train(
        tiny(),
        lambda *_: pytest.fail("a step"),
        batches,
        replace(QUICK, checkpoint_seconds=9),
        state=state,
        machine=other,
    )
    with pytest.raises(DataError, match="belongs to another run"):
        train(tiny(), task_step, batches, QUICK, state=state, machine=Machine("bf16"))
    with pytest.raises(DataError, match="belongs to another run"):
        train(tiny(), task_step, batches, replace(QUICK, ema=0.5), state=state)


class Tracker(accelerate.tracking.GeneralTracker):
    name, requires_logging_directory = "lines", False

    def __init__(self):
        super().__init__()
        self.lines, self.settings = [], {}

    @property
    def tracker(self):
        return self.lines

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **_):
        self.lines.append((step, values))


def test_a_tracker_is_told_loss_learning_rate_speed_and_what_was_evaluated():
    tracker, losses = Tracker(), []

    def step(model, batch, progress):
        losses.append(task_step(model, batch, progress))
        return losses[-1]

    schedule = Schedule(epochs=4, batch_size=4)
    train(tiny(), step, batches, schedule, evaluate=lambda: {"top1": 0.5}, machine=Machine(log_with=tracker))
    lines = [(done, values) for done, values in tracker.lines if "loss" in values]
    assert [done for done, _ in lines] == [20, 24]
    for done, values in lines:
        assert values["loss"] == losses[done - 1].item()
        assert values["lr"] == learning_rate(schedule, done - 1, 24)
        assert values["images_per_s"] > 0
    assert [done for done, values in tracker.lines if values == {"top1": 0.5}] == [6, 12, 18, 24]
    assert tracker.settings["batch_size"] == 4


def test_the_speed_is_that_of_the_steps_since_it_was_last_asked(monkeypatch):
    clock = iter([0.0, 2.0, 3.0])
    with monkeypatch.context() as patch:
        patch.setattr("zoo.training.trainer.time.monotonic", lambda: next(clock))
        speed = _speed(4, 10)
        found = [speed(20), speed(26)]
    assert found == [10 * 4 / 2, 6 * 4 / 1]


def test_a_compiled_model_learns_the_same(monkeypatch):
    """Compiled to torch's own operations: what a compiler of C++ makes of them is torch's matter, and takes long."""
    backends, compiling = [], torch.compile

    def compile(model, **how):
        backends.append(how["backend"])
        return compiling(model, **{**how, "backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", compile)

    def trained(machine):
        torch.manual_seed(0)  # no dropout: compiled, its random numbers are others
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4))
        return train(model, task_step, batches, Schedule(1, steps=2, batch_size=4), machine=machine)

    usual, compiled = trained(Machine()), trained(Machine(compile=True))
    assert backends == ["inductor"]
    for expected, found in zip(usual.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
