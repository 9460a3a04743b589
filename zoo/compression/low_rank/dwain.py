"""Dwain: layers are factored one after the other, from the last to the first, by what that does to the task's loss.

For each Linear and 1 × 1 convolution, in reverse order, in the model as the layers before have left it:

1. statistic — the principal directions U of its outputs over calibration images (`factors.directions`);
2. criterion — ranks k = r·f, r·f², .. ≥ min_rank are tried, f = reduction_factor. Of the perplexities e^CE of the model
   with W and with W_k = U_k U_kᵀ W, d is the difference over the former, the mean of the batches; k is accepted where

       d < trade_off_factor · (mn − (m + n)k) / params,   d < max_accepted_ppl_diff,   NSR(y_k, y) < nsr_final_threshold

   for the logits y. After a rejection smaller ranks are still tried: the last accepted counts;
3. edit — the layer is replaced at once, and the layers replaced so far are trained a little on the labels before the
   next is looked at.

For L layers this costs L·(data_steps + metric_steps·(1 + ranks tried)) forward passes and a training for each replaced.

Where this isn't the source: batches come from one fixed calibration set; no rank below min_rank is tried (the source
may try one); the NSR is the mean over classes, where the source takes all logits for one channel; norms and dropout
stay in eval mode while training, an option there, so that factors alone change; convolutions keep stride and padding.

Source: ptdeco (TCL Research Europe), `ptdeco.dwain` and the example of its vision trainer.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.compression import Algorithm, Given, Trained
from zoo.compression.low_rank.factorable import grows, left_whole, matrices
from zoo.compression.low_rank.factors import dense_logits, directions, factored, factors, moved, replaced
from zoo.declarations import Count, validate
from zoo.errors import DataError
from zoo.progress import shown
from zoo.structure.description import Description
from zoo.structure.plan import Factor, Rank
from zoo.training import checkpoint as states
from zoo.training.distillation import task_step
from zoo.training.schedule import Machine, Schedule
from zoo.training.trainer import train

SCHEDULE = Schedule(epochs=50, steps=50, batch_size=80, lr=5e-5, warmup=0.0, weight_decay=0.01)


@dataclass(frozen=True)
class Dwain:
    """How ranks are chosen.

    Args:
        trade_off_factor: relative rise of the perplexity that is paid for the whole of the model's params.
        max_accepted_ppl_diff: largest relative rise that one layer may cause.
        nsr_final_threshold: largest noise-to-signal ratio that one layer may cause in the logits.
        reduction_factor: f, of one rank tried to the next.
        min_rank: the smallest rank tried.
        data_steps: batches for the directions, the first of the calibration set.
        metric_steps: batches for each probe of a rank, likewise.
        finetune_last: how many of the layers replaced last are trained after each replacement; None trains all.
        exclude: paths, patterns or words (`head`, `stem`) of layers that stay dense, as in `exclusion`.
        only: layers that alone may be factored, likewise; none means all.
    """

    trade_off_factor: Annotated[float, Meta(gt=0)] = 0.5
    max_accepted_ppl_diff: Annotated[float, Meta(gt=0)] = 0.1
    nsr_final_threshold: Annotated[float, Meta(gt=0)] = 1.0
    reduction_factor: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    min_rank: Count = 32
    data_steps: Count = 8
    metric_steps: Count = 8
    finetune_last: Count | None = None
    exclude: str | Sequence[str] = ()
    only: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        validate(self, "dwain", DataError)

    def ranks(self, full: int) -> Iterator[int]:
        """The ranks that are tried, from the full one down.

        >>> list(Dwain(min_rank=4).ranks(48))
        [24, 12, 6]
        """
        k = int(full * self.reduction_factor)
        while k >= self.min_rank:
            yield k
            k = int(k * self.reduction_factor)


def dwain(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    data: Callable[[int], Any],
    how: Dwain | None = None,
    schedule: Schedule | None = None,
    *,
    seed: int = 0,
    state: Path | None = None,
    machine: Machine | None = None,
) -> tuple[Factor, dict[str, Tensor]]:
    """Factor layers one by one, each against the task's loss, with a little training in between.

    Args:
        model: a classifier; left as it was.
        batches: calibration images [B, C, H, W] and labels [B], at least two in each.
        data: epoch → loader of training batches (images, labels), as `train` takes it.
        how: the declaration; None takes its defaults.
        schedule: of the training after each replacement; None takes `SCHEDULE`, zero epochs leave it out.
        seed: of the training.
        state: a file that remembers what each layer came to; the same call goes on from there after an interruption.
        machine: how training runs here.

    Returns:
        The edit, and path → tensor of the factored model, on the CPU.

    Raises:
        DataError: the images or labels can't be used, an activation or the loss isn't finite, or the state is another
            run's.
        StructureError: the outputs aren't logits.
        UnknownName: `exclude` or `only` names no layer.
        MissingExtra: accelerate isn't installed.
        StorageError: the state can't be read or written.
    """
    how, schedule = how or Dwain(), schedule or SCHEDULE
    smaller = copy.deepcopy(model).eval().requires_grad_(False)
    _check_labels(batches, dense_logits(smaller, [images for images, _ in batches]))
    layers = matrices(smaller, batches[0][0], how.exclude, how.only, "dwain")[::-1]  # the last first
    params = sum(p.numel() for p in smaller.parameters())
    seen = [tensor for batch in batches for tensor in batch]
    run = states.digest("dwain", (how, schedule, seed), smaller, seen) if state else ""
    ranks = _resume_(state, run, smaller) if state and state.exists() else {}
    for number, path in enumerate(shown(layers, "dwain", unit="layer")):
        if path in ranks:
            continue
        ranks[path] = _replace_(smaller, path, batches, params, how)
        accepted = [path for path, k in ranks.items() if k is not None]
        if ranks[path] is not None:
            trained = accepted[-(how.finetune_last or len(accepted)) :]
            first = number * max(1, schedule.epochs)  # each training sees other epochs
            _finetune_(smaller, trained, data, first, schedule, seed, machine)
        if state:
            states.save_state(state, run, _factors(smaller, ranks), ranks)
    edit = Factor({path: Rank(k) for path in layers if (k := ranks[path]) is not None})
    return edit, replaced(model, _factors(smaller, ranks), edit.layers)


def _finetune_(
    model: nn.Module,
    paths: Sequence[str],
    data: Callable[[int], Any],
    first: int,
    schedule: Schedule,
    seed: int,
    machine: Machine | None,
) -> None:
    """Train the factors at these paths on the labels, from this epoch of the data on."""

    def step(model: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> Tensor:
        return task_step(model.eval(), batch, progress)

    for path in paths:
        model.get_submodule(path).requires_grad_(True)
    train(model, step, lambda epoch: data(first + epoch), schedule, seed=seed, progress=paths[-1], machine=machine)
    model.requires_grad_(False)


def _replace_(
    model: nn.Module, path: str, batches: Sequence[tuple[Tensor, Tensor]], params: int, how: Dwain
) -> int | None:
    """Replace a layer by its factors of the last rank accepted; None, and no change, where there is none."""
    layer: Any = model.get_submodule(path)
    m, n = layer.weight.shape[:2]
    device = layer.weight.device
    U = directions(model, path, [images.to(device) for images, _ in batches[: how.data_steps]])
    if U is None:
        return None
    images, labels = zip(*((x.to(device), y.to(device)) for x, y in batches[: how.metric_steps]), strict=True)
    with torch.no_grad():
        logits = [model(batch).float() for batch in images]

    def rise(number: int, y_k: Tensor, y: Tensor) -> Tensor:
        return torch.expm1(F.cross_entropy(y_k, labels[number]) - F.cross_entropy(y, labels[number]))

    best = None
    for k in how.ranks(min(m, n)):
        if grows(layer, Rank(k)):
            continue
        noise, risen = moved(model, path, U, k, images, logits, rise)
        allowed = min(how.trade_off_factor * (m * n - (m + n) * k) / params, how.max_accepted_ppl_diff)
        if risen < allowed and noise < how.nsr_final_threshold:
            best = k
    if best is not None:
        _assign_(model, path, best, factored(layer, *factors(layer, U, best), path))
    return best


def _assign_(model: nn.Module, path: str, k: int, tensors: Mapping[str, Tensor]) -> None:
    with torch.random.fork_rng(devices=[]):
        Factor({path: Rank(k)}).apply_(model)
    for name, parameter in model.get_submodule(path).requires_grad_(False).named_parameters():
        parameter.copy_(tensors[f"{path}.{name}"])


def _factors(model: nn.Module, ranks: Mapping[str, int | None]) -> dict[str, Tensor]:
    """The tensors of the layers replaced so far, on the CPU."""
    return {
        f"{path}.{name}": parameter.detach().cpu().clone()
        for path, k in ranks.items()
        if k is not None
        for name, parameter in model.get_submodule(path).named_parameters()
    }


def _check_labels(batches: Sequence[tuple[Tensor, Tensor]], logits: Sequence[Tensor]) -> None:
    for number, ((_, labels), y) in enumerate(zip(batches, logits, strict=True)):
        where, classes = f"calibration: batch {number}", y.shape[1]
        if labels.shape != y.shape[:1] or labels.is_floating_point():
            raise DataError(f"{where} has labels {list(labels.shape)}, expected [{len(y)}] of int64")
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < classes:
            raise DataError(f"{where} has labels {low} to {high}, expected 0 to {classes - 1}")


def _resume_(path: Path, run: str, model: nn.Module) -> dict[str, int | None]:
    """Replace the layers that were replaced before."""
    tensors, ranks = states.load_state(path, run)
    for layer, k in ranks.items():
        if k is not None:
            _assign_(model, layer, k, tensors)
    return ranks


def trained(model: nn.Module, image: Tensor, how: Dwain) -> Trained:
    """The model, as often as there are layers to look at: at most, since few are replaced and each has fewer macs."""
    layers = matrices(model, image, how.exclude, how.only, "dwain")
    return Trained(copy.deepcopy(model), times=len(layers), at_most=True)


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    labelled = list(zip(given.batches, given.labels, strict=True))
    seed, state, machine = given.seed, given.state, given.machine
    edit, tensors = dwain(
        given.model, labelled, given.epoch, given.how, given.schedule, seed=seed, state=state, machine=machine
    )
    return given.edited(edit), tensors


ALGORITHM = Algorithm(Dwain, run, SCHEDULE, trained, whole=partial(left_whole, "dwain", False))
