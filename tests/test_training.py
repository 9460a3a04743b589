"""The training loop: what it minimises, what it refuses, and what it leaves alone."""

import gc
import math
import random
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import QUICK, batches, same, tiny
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import zoo
from zoo.errors import DataError, StorageError
from zoo.measurement.divergence import kl
from zoo.training import frozen_zeros
from zoo.training.distillation import Distil, distil_step, renormalised, shares_of, task_step, teacher_at
from zoo.training.losses import distillation
from zoo.training.schedule import Schedule, learning_rate
from zoo.training.trainer import train

logits = st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=2, max_size=2).map(torch.tensor)


@given(student=logits, teacher=logits, temperature=st.floats(0.5, 8))
def test_kl_is_what_its_formula_says(student, teacher, temperature):
    p, q = (np.exp(x.double().numpy() / temperature) for x in (teacher, student))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = temperature**2 * (p * np.log(p / q)).sum(1)
    found, itself = (temperature**2 * kl(each, teacher, temperature) for each in (student, teacher))
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert found.min() >= -1e-4
    assert itself.abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kl_agrees_with_torch_and_its_gradient_keeps_its_size_at_every_temperature(temperature):
    student, teacher = torch.randn(2, 64, 10).unbind()
    student.requires_grad_()
    soft = (teacher / temperature).softmax(1)
    expected = F.kl_div((student / temperature).log_softmax(1), soft, reduction="batchmean") * temperature**2
    found = distillation(student, teacher, torch.zeros(64, dtype=torch.int64), 1.0, temperature)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(gradient, temperature * ((student / temperature).softmax(1) - soft).detach() / 64)


def test_distillation_mixes_teacher_and_labels():
    student, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = 0.7 * 9 * kl(student, teacher, 3.0).mean() + 0.3 * F.cross_entropy(student, labels)
    torch.testing.assert_close(distillation(student, teacher, labels, 0.7, 3.0), expected)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((1.0,), [0] * 12),
        ((0.5, 0.5), [0] * 6 + [1] * 6),
        ([1 / 3] * 3, [0] * 4 + [1] * 4 + [2] * 4),
        ((0.25, 0.5, 0.25), [0] * 3 + [1] * 6 + [2] * 3),
    ],
)
def test_each_teacher_has_its_share_of_the_steps_in_order(shares, expected):
    assert expected == [teacher_at(step / 12, shares) for step in range(12)]


@given(progress=st.floats(0, 1), teachers=st.integers(1, 9))
def test_there_is_a_teacher_at_every_moment(progress, teachers):
    assert 0 <= teacher_at(progress, shares_of(teachers, Distil())) < teachers


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.0, 0.0), "half", (0.5, "half")])
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(DataError, match=r"distil: shares is .*, expected one above 0 for each teacher, together 1"):
        Distil(shares=shares)


def test_shares_of_another_number_of_teachers_are_refused():
    with pytest.raises(DataError, match="distil: 2 shares for 3 teachers; expected one for each"):
        distil_step([tiny()] * 3, Distil(shares=(0.5, 0.5)))


HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 4, 4)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "input_size": (3, 8, 8)}


def test_a_teacher_that_was_normalised_otherwise_sees_the_same_pixels():
    pixels = torch.rand(2, 3, 4, 4)
    mine, its = (
        torch.stack([(pixels[:, i] - c["mean"][i]) / c["std"][i] for i in range(3)], 1) for c in (HALVES, IMAGENET)
    )
    torch.testing.assert_close(renormalised(mine, HALVES, {**IMAGENET, "input_size": (3, 4, 4)}), its)
    assert renormalised(mine, HALVES, dict(HALVES)) is mine, "and what it takes is left alone"


def test_a_teacher_of_another_size_has_images_that_are_tensors_resized():
    images = torch.randn(2, 3, 4, 4)
    larger = {**HALVES, "input_size": (3, 8, 8)}
    expected = F.interpolate(images, (8, 8), mode="bicubic", antialias=True)
    assert torch.equal(renormalised(images, HALVES, larger), expected)
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4)).eval()
    teacher.pretrained_cfg = larger
    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    loss = distil_step([teacher], Distil(alpha=1.0), HALVES)(student, (images, torch.tensor([0, 1])), 0.0)
    torch.testing.assert_close(loss, 4 * kl(student(images), teacher(expected), 2.0).mean())


@pytest.mark.parametrize(("progress", "teacher"), [(0.0, 0), (0.49, 0), (0.5, 1), (1.0, 1)])
def test_a_distillation_step_learns_from_the_teacher_whose_turn_it_is(progress, teacher):
    student, teachers = tiny().eval(), [tiny(1).eval(), tiny(2).eval()]
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
    loss = distil_step(teachers, Distil(alpha=0.8, temperature=2.0))(student, (images, labels), progress)
    with torch.no_grad():
        target = teachers[teacher](images)
    torch.testing.assert_close(loss, distillation(student(images), target, labels, 0.8, 2.0))
    loss.backward()
    assert all(parameter.grad is None for parameter in teachers[teacher].parameters())


@given(total=st.integers(1, 300), warmup=st.floats(0, 1), lr=st.floats(1e-5, 1))
def test_the_learning_rate_rises_to_its_height_and_falls_along_a_cosine(total, warmup, lr):
    schedule = Schedule(lr=lr, warmup=warmup)
    rates = [learning_rate(schedule, step, total) for step in range(total)]
    top = rates.index(max(rates))
    assert min(rates) > 0
    assert max(rates) == pytest.approx(lr)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_zeros_that_are_held_stay_zero_through_momentum_and_decay_while_the_others_move():
    model = tiny()
    with torch.no_grad():
        model[1].weight[:, ::3] = 0
    start, zeros = model[1].weight.detach().clone(), model[1].weight == 0
    task_step(model, next(iter(batches(0))), 0).backward()  # a gradient from before is no excuse
    with frozen_zeros.zeros_held(model, ["1"]):
        train(model, task_step, batches, Schedule(epochs=3, batch_size=4, weight_decay=0.1, lr=0.01))
    assert torch.equal(zeros, model[1].weight == 0)
    assert (model[1].weight - start)[~zeros].abs().min() > 0
    train(model, task_step, batches, QUICK)
    assert (model[1].weight != 0).all(), "no longer held once the block has ended"


def frozen(model):
    model[1].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "schedule", "seed"),
    [
        (tiny, Schedule(epochs=2, batch_size=4, lr=0.5), 0),
        (tiny, Schedule(epochs=3, batch_size=4, checkpoint_seconds=0), 0),
        (tiny, QUICK, 1),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), QUICK, 0),
        (lambda: tiny(width=1), QUICK, 0),
        (lambda: tiny(1), QUICK, 0),
        (lambda: frozen(tiny()), QUICK, 0),
        (lambda: tiny(1), Schedule(epochs=2, steps=1, batch_size=4), 0),
    ],
    ids=["learning rate", "length", "seed", "model", "width", "weights", "frozen", "nothing to do"],
)
def test_the_state_of_another_run_is_refused(model, schedule, seed, tmp_path):
    state = tmp_path / "state"
    train(tiny(), task_step, batches, QUICK, state=state)
    with pytest.raises(DataError, match="state belongs to another run; remove it to start again"):
        train(model(), task_step, batches, schedule, seed=seed, state=state)


def test_the_state_of_a_run_about_something_else_is_refused(tmp_path):
    state = tmp_path / "state"
    train(tiny(), task_step, batches, QUICK, state=state, about={"teachers": ["a"]})
    for about in ({"teachers": ["b"]}, None):
        with pytest.raises(DataError, match="state belongs to another run; remove it to start again"):
            train(tiny(), task_step, batches, QUICK, state=state, about=about)
    train(tiny(), lambda *_: pytest.fail("a step"), batches, QUICK, state=state, about={"teachers": ["a"]})


TAUGHT = {"data": "digits[:8]", "schedule": Schedule(epochs=1, batch_size=4), "augment": {"hflip": 0.0}}


@pytest.mark.parametrize(
    ("teachers", "change"),
    [
        (("digits_cnn_pruned_25",), {}),
        (("digits_cnn", "digits_cnn"), {}),
        ((), {}),
        (("digits_cnn",), {"how": Distil(alpha=0.5)}),
        (("digits_cnn",), {"data": "digits[:9]"}),
        (("digits_cnn",), {"augment": {}}),
    ],
    ids=["another", "two", "none", "loss", "data", "augmentation"],
)
def test_distillation_is_not_resumed_with_other_teachers_or_data(teachers, change, tmp_path):
    state = tmp_path / "state"
    student = zoo.load("digits_cnn_pruned_50")
    zoo.distil(student, [zoo.load("digits_cnn")], **TAUGHT, state=state)
    again = zoo.distil(zoo.load("digits_cnn_pruned_50"), [zoo.load("digits_cnn")], **TAUGHT, state=state)
    assert same(student.state_dict(), again.state_dict())
    with pytest.raises(DataError, match="state belongs to another run; remove it to start again") as caught:
        zoo.distil(again, [zoo.load(name) for name in teachers], **{**TAUGHT, **change}, state=state)
    assert "\n" not in str(caught.value)


def test_a_finished_run_that_is_started_again_gives_its_weights_without_a_step(tmp_path):
    done = train(tiny(), task_step, batches, QUICK, state=tmp_path / "state")
    again = train(tiny(), lambda *_: pytest.fail("a step"), batches, QUICK, state=tmp_path / "state")
    assert same(done.state_dict(), again.state_dict())
    assert not again.training
    assert [tmp_path / "state"] == list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 7, 0.5, -1], ids=["empty", "7 bytes", "half", "all but a byte"])
def test_a_damaged_state_is_refused_in_one_line(kept, tmp_path):
    state = tmp_path / "state"
    train(tiny(), task_step, batches, QUICK, state=state)
    data = state.read_bytes()
    state.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(StorageError, match=r"can't be resumed from .*; remove it to start again") as caught:
        train(tiny(), task_step, batches, QUICK, state=state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value):
    with pytest.raises(DataError, match=r"the loss is (nan|inf) at step 0; lower the learning rate"):
        train(tiny(), lambda model, batch, progress: task_step(model, batch, progress) * value, batches, QUICK)


def test_too_few_images_for_one_batch_are_refused():
    three = [(torch.zeros(3, 2, 2), 0)] * 3
    with pytest.raises(DataError, match="not one whole batch of 4 images"):
        train(tiny(), task_step, lambda epoch: DataLoader(three, 4, drop_last=True), QUICK)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.ones(3, 2, 2) * i, i % 4) for i in range(20)])


def test_a_stream_without_a_length_needs_the_number_of_steps():
    def stream(epoch):
        return DataLoader(Stream(), 4)

    with pytest.raises(DataError, match="a stream has no length; set the schedule's steps"):
        train(tiny(), task_step, stream, Schedule(batch_size=4))
    seen = []
    train(
        tiny(),
        lambda model, batch, progress: seen.append(progress) or task_step(model, batch, progress),
        stream,
        Schedule(steps=12, batch_size=4),  # more than the 5 of one pass
    )
    assert [step / 12 for step in range(12)] == seen


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2, None, 12), (2, 5, 5), (1, 99, 6), (3, 13, 13)])
def test_training_ends_after_its_epochs_or_its_steps(epochs, steps, expected):
    seen = []
    train(
        tiny(),
        lambda model, batch, progress: seen.append(batch[0]) or task_step(model, batch, progress),
        batches,
        Schedule(epochs=epochs, steps=steps, batch_size=4),
    )
    assert expected == len(seen)
    every = [images for epoch in range(3) for images, _ in batches(epoch)]
    assert all(torch.equal(*pair) for pair in zip(every, seen, strict=False)), "in the data's own order"


def test_the_callers_random_state_is_left_as_it_was():
    model = tiny()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    train(model, task_step, batches, QUICK)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())


def test_dropout_depends_on_the_seed_and_on_nothing_that_happened_before():
    first = train(tiny(), task_step, batches, QUICK)
    model = tiny()
    torch.rand(17)
    assert same(first.state_dict(), train(model, task_step, batches, QUICK).state_dict())
    assert not same(first.state_dict(), train(tiny(), task_step, batches, QUICK, seed=1).state_dict())


def test_frozen_parameters_stay_and_the_evaluation_is_called_after_each_epoch():
    model, called = tiny(), []
    model[1].requires_grad_(False)
    before = model[1].weight.clone()
    train(model, task_step, batches, QUICK, evaluate=lambda: called.append(model.eval()) or {"top1": 0.5})
    assert torch.equal(before, model[1].weight)
    assert len(called) == 2


def test_what_is_kept_in_memory_does_not_grow_with_the_epochs():
    kept, alive = [], weakref.WeakSet()

    class Counted(list):
        __hash__ = object.__hash__

    def counted(epoch):
        rows = Counted(batches(epoch).dataset)
        alive.add(rows)
        return DataLoader(rows, 4, drop_last=True, generator=torch.Generator())

    def count():
        gc.collect()
        kept.append(len(alive))
        return {}

    gc.freeze()  # what is there already takes a second to go through
    try:
        train(tiny(), task_step, counted, Schedule(epochs=6, batch_size=4), evaluate=count)
    finally:
        gc.unfreeze()
    assert max(kept) <= 2
    assert kept[1:] == kept[:1] * 5
