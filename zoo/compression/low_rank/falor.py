"""Falor: features are low-rank. Each layer takes the smallest rank that moves the model's logits little enough.

For each Linear and 1 × 1 convolution by itself, all others dense:

1. statistic — the principal directions U of its outputs over calibration images (`factors.directions`);
2. criterion — rank k is accepted where the logits y of the model with W_k = U_k U_kᵀ W satisfy

       NSR(y_k, y) < nsr_final_threshold   and   E[max(KL(p ‖ p_k), KL(p_k ‖ p))] < kl_final_threshold,   p = softmax(y)

   and searched by a bisection that only goes down from the best rank: w = r/2, r/4, .., 1, trying best − w;
3. edit — the best rank, where that has fewer params than the dense layer. All layers are replaced at the end: the
   thresholds hold for each layer alone, what they do together is for fine-tuning to repair.

For L layers of full rank r this costs about L·(data_steps + metric_steps·log₂ r) + metric_steps forward passes.

Where this isn't the source: batches come from one fixed calibration set, not fresh and random for every probe, so a run
can be repeated; the factors built are those of the best rank, not of the last one tried; a convolution keeps its stride
and padding, and is analysed at the positions that it computes.

Source: Yu, Wu, "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!" (AAAI 2023); the search and its
criterion as in ptdeco (TCL Research Europe), `ptdeco.falor`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor, nn

from zoo.compression import Algorithm, Given
from zoo.compression.low_rank.factorable import grows, left_whole, matrices
from zoo.compression.low_rank.factors import dense_logits, directions, factored, factors, moved, replaced
from zoo.declarations import Count, validate
from zoo.errors import DataError
from zoo.measurement.divergence import Divergence, symmetric, symmetric_kl
from zoo.progress import shown
from zoo.structure.description import Description
from zoo.structure.plan import Factor, Rank
from zoo.training import checkpoint as states


@dataclass(frozen=True)
class Falor:
    """How ranks are chosen.

    Args:
        nsr_final_threshold: largest noise-to-signal ratio that one layer may cause in the logits.
        kl_final_threshold: largest divergence that it may cause, in nats.
        data_steps: batches for the directions, the first of the calibration set.
        metric_steps: batches for each probe of a rank, likewise.
        exclude: paths, patterns or words (`head`, `stem`) of layers that stay dense, as in `exclusion`.
        only: layers that alone may be factored, likewise; none means all.
    """

    nsr_final_threshold: Annotated[float, Meta(gt=0)] = 0.01
    kl_final_threshold: Annotated[float, Meta(gt=0)] = 0.01
    data_steps: Count = 5
    metric_steps: Count = 5
    exclude: str | Sequence[str] = ()
    only: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        validate(self, "falor", DataError)


def falor(
    model: nn.Module,
    batches: Sequence[Tensor],
    how: Falor | None = None,
    *,
    state: Path | None = None,
    divergence: Divergence = symmetric_kl,
) -> tuple[Factor, dict[str, Tensor]]:
    """Choose a rank for each layer by what it does to the model's logits.

    Args:
        model: a classifier in eval mode; left as it was.
        batches: calibration images [B, C, H, W], at least two in each.
        how: the declaration; None takes its defaults.
        state: a file that remembers the ranks found; the same call goes on from there after an interruption.
        divergence: of logits from those of the dense model.

    Returns:
        The edit, and path → tensor of the factored model, on the CPU.

    Raises:
        DataError: the calibration images can't be used, an activation isn't finite, or the state is another run's.
        StructureError: the outputs aren't logits.
        UnknownName: `exclude` or `only` names no layer.
        StorageError: the state can't be read or written.
    """
    how = how or Falor()
    logits, probed = dense_logits(model, batches)[: how.metric_steps], batches[: how.metric_steps]
    layers = matrices(model, batches[0], how.exclude, how.only, "falor")
    run = states.digest("falor", how, model, batches) if state else ""
    ranks: dict[str, int | None] = states.load_state(state, run)[1] if state and state.exists() else {}
    tensors: dict[str, Tensor] = {}
    for path in shown(layers, "falor", unit="layer"):
        if path in ranks and ranks[path] is None:
            continue
        layer = model.get_submodule(path)
        U = directions(model, path, batches[: how.data_steps])
        if path not in ranks:
            ranks[path] = _search(model, path, U, probed, logits, how, divergence) if U is not None else None
            if state:
                states.save_state(state, run, {}, ranks)
        if U is not None and (k := ranks[path]) is not None:
            tensors |= factored(layer, *factors(layer, U, k), path)
    accepted = {path: Rank(k) for path in layers if (k := ranks[path]) is not None}
    return Factor(accepted), replaced(model, tensors, accepted)


def _search(
    model: nn.Module,
    path: str,
    U: Tensor,
    batches: Sequence[Tensor],
    logits: Sequence[Tensor],
    how: Falor,
    divergence: Divergence,
) -> int | None:
    """The smallest rank that a bisection accepts; None where it saves nothing."""
    layer: Any = model.get_submodule(path)
    full = min(layer.weight.shape[:2])

    def rise(number: int, y_k: Tensor, y: Tensor) -> Tensor:
        return divergence(y_k, y).mean()

    def accepted(k: int) -> bool:
        noise, nats = moved(model, path, U, k, batches, logits, rise)
        return noise < how.nsr_final_threshold and nats < how.kl_final_threshold

    best = bisection(full, accepted)
    return None if best == full or grows(layer, Rank(best)) else best


def bisection(full: int, accepted: Callable[[int], bool]) -> int:
    """The source's search: from the best rank so far down by r/2, r/4, .., 1.

    Where every rank above an accepted one is accepted too, it finds the smallest of those that it can reach: r less
    some of r/2, r/4, .., 1, each rounded down; every rank of 64, but not 4 of 6.

    >>> bisection(64, lambda k: k >= 11)
    11
    >>> bisection(6, lambda k: k >= 4)
    5
    """
    best, step = full, full // 2
    while step:
        if accepted(best - step):
            best -= step
        step //= 2
    return best


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    larger = partial(symmetric, given.divergence)
    edit, tensors = falor(given.model, given.batches, given.how, state=given.state, divergence=larger)
    return given.edited(edit), tensors


ALGORITHM = Algorithm(Falor, run, whole=partial(left_whole, "falor", False))
