"""Coverage: what can be pruned of a model, why the rest can't, and the structures that published figures ask for.

Nothing is fetched and no image is looked at: weights are random, since structure alone is asked for, and every cut is
checked against the masked dense model.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo import catalog
from zoo.catalog.entry import Entry
from zoo.compression.channels import planning
from zoo.compression.channels.analysis import exported
from zoo.compression.channels.checking import graph_difference
from zoo.compression.channels.groups import Analysis, Group
from zoo.compression.prune.allocation import allocate, prior
from zoo.errors import BudgetError, StructureError
from zoo.hub import repository
from zoo.measurement.divergence import leaves
from zoo.measurement.macs import measure
from zoo.structure.base import initialised
from zoo.structure.describing import describe, described
from zoo.structure.description import Description, config_of
from zoo.structure.graph.certificate import check_floats
from zoo.structure.plan import apply_
from zoo.verbs.loading import create, load


@dataclass(frozen=True)
class Coverage:
    """What can be pruned of a model.

    Args:
        name: of the model.
        groups: how many there are.
        prunable: share of the macs in layers that can be narrowed.
        residual: share in layers that residual streams pass through, among them.
        heads: share that goes with attention heads.
        kept: share of the macs that the cut of half of them left.
        structure: how that cut is written down, `plan` or `graph`.
        off: its largest difference from the masked dense model, as a share of the largest output.
        seconds: that analysis, cut and check took.
        frozen: path of a layer whose outputs can't be cut → why.
        error: why nothing could be found out.
    """

    name: str
    groups: int = 0
    prunable: float = 0.0
    residual: float = 0.0
    heads: float = 0.0
    kept: float = 1.0
    structure: str | None = None
    off: float = math.inf
    seconds: float = 0.0
    frozen: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Target:
    """A structure made for published figures.

    Args:
        name: of the entry.
        macs: share of the base's that is left.
        macs_published: the same, as published.
        params: share of the base's that is left.
        params_published: the same, as published.
        seconds: that choosing its widths took.
        outputs: sha256 of what the saved model gives (`outputs_of`).
    """

    name: str
    macs: float
    macs_published: float
    params: float
    params_published: float | None
    seconds: float
    outputs: str


def coverage(model: str | nn.Module, share: float = 0.5, example: Sequence[int] | Tensor | None = None) -> Coverage:
    """Find out what can be pruned of a model, cutting every group alike until so many of its macs are left.

    Args:
        model: a name that `create` takes, of the catalog, a folder, or a base id (`timm/resnet18`); or any module.
        share: of the macs that the trial cut leaves, 0..1.
        example: of a module that says nothing of its images, as `described` takes it.

    Returns:
        What was found; `error` instead where the model can't be exported.

    Raises:
        UnknownName, RepositoryError: no such model.
        StructureError: it computes in integers.
    """
    if isinstance(model, str):
        name, made = model, load(model) if Path(model).is_dir() else create(model)
    else:
        name, made = type(model).__name__, model
    check_floats(made, "pruned")
    started = time.perf_counter()
    try:
        found, _ = described(made, example=example)
        return replace(_coverage(name, found, share), seconds=time.perf_counter() - started)
    except StructureError as error:
        return Coverage(name, seconds=time.perf_counter() - started, error=str(error))


def targets() -> list[str]:
    """Names of the pruned models whose macs and params were published."""
    names = catalog.names(all=True, project="torch-dag", method="prune")
    return [name for name in names if catalog.info(name).recipe.budget is not None]


def find_stand_in(entry: Entry) -> Description:
    """The structure over an entry's base that keeps the published shares of macs and params.

    Which widths were published isn't known before the model is converted: these are the ones that `allocation.prior`
    makes of the figures.

    Raises:
        BudgetError: the figures can't be met.
        StructureError: the entry says too little.
    """
    if entry.base is None or entry.recipe.budget is None:
        raise StructureError(f"{entry.name}: the catalog knows no base or no budget of it")
    model, image, budget = planning.swapped(create(entry.base.id)), torch.zeros(2, *entry.input), entry.recipe.budget

    def chosen(analysis: Analysis) -> list[Tensor]:
        return [torch.arange(k) for k in allocate(analysis, prior(analysis), budget)]

    trial = planning.by_plan(exported(model, image), model, image, chosen)
    narrowed = planning.planned(model, trial.analysis, trial.units)
    counts, dense = measure(narrowed, entry.input), measure(model, entry.input)
    _met(entry.name, "macs", counts.macs / dense.macs, budget.macs, 0.005)
    if budget.params is not None:
        _met(entry.name, "params", counts.params / dense.params, budget.params, 0.05)
    return Description(entry.name, entry.base, describe(narrowed).plan, structure="stand-in")


def build_target(name: str, folder: Path) -> Target:
    """Make the structure of a target and save it with random weights.

    Args:
        name: one of `targets`.
        folder: the new repository.

    Raises:
        BudgetError, StructureError: as for `find_stand_in`.
    """
    entry, started = catalog.info(name), time.perf_counter()
    description = find_stand_in(entry)
    seconds = time.perf_counter() - started
    assert description.base is not None
    assert entry.recipe.budget is not None
    dense = initialised(description.base)
    whole = measure(dense, entry.input)
    model = apply_(dense, description.plan)
    counts = measure(model, entry.input)
    repository.write_repository(folder, model, description, {})
    budget, shares = entry.recipe.budget, (counts.macs / whole.macs, counts.params / whole.params)
    return Target(name, shares[0], budget.macs, shares[1], budget.params, seconds, outputs_of(folder))


def outputs_of(folder: Path | str) -> str:
    """The sha256 of what the model in a folder gives for two images of noise."""
    model = load(folder)
    config = config_of(model)
    images = torch.randn(2, *config["input_size"], generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # another number of them adds up in another order
    try:
        with torch.inference_mode():
            return hashlib.sha256(b"".join(each.numpy().tobytes() for each in leaves(model(images)))).hexdigest()
    finally:
        torch.set_num_threads(threads)


def _met(name: str, what: str, found: float, wanted: float, tolerance: float) -> None:
    if abs(found / wanted - 1) > tolerance:
        raise BudgetError(f"{name}: {found:.3f} of the {what} are left, expected {wanted:.3f} within {tolerance:.1%}")


def _coverage(name: str, model: nn.Module, share: float) -> Coverage:
    model = planning.swapped(model)
    image = torch.zeros(2, *config_of(model)["input_size"])

    def chosen(analysis: Analysis) -> list[Tensor]:
        kept = _alike(analysis, share)
        if _kept(analysis, kept) > share:
            raise BudgetError(f"{name}: a plan can't leave {share:.0%} of the macs")
        return _drawn(analysis, kept)

    trial, no_plan = planning.plan_else_graph(model, image, chosen)
    analysis, units, off = trial.analysis, trial.units, trial.off
    if no_plan:
        units = _drawn(analysis, _alike(analysis, share))
        off = graph_difference(model, analysis, units, image)
    return Coverage(
        name,
        groups=len(analysis.groups),
        prunable=_touched(analysis, lambda group: True),
        residual=_touched(analysis, lambda group: group.residual),
        heads=_touched(analysis, lambda group: group.head_dim is not None),
        kept=_kept(analysis, [len(each) for each in units]),
        structure="graph" if no_plan else "plan",
        off=off,
        frozen=analysis.frozen,
    )


def _drawn(analysis: Analysis, kept: Sequence[int]) -> list[Tensor]:
    """So many units of each group, drawn at random but always the same."""
    return [
        torch.randperm(group.units, generator=torch.Generator().manual_seed(g))[:k].sort().values
        for g, (group, k) in enumerate(zip(analysis.groups, kept, strict=True))
    ]


def _kept(analysis: Analysis, kept: Sequence[int]) -> float:
    """The share of the macs that is left."""
    return analysis.total(analysis.macs, kept) / sum(cost.count for cost in analysis.macs)


def _touched(analysis: Analysis, wanted: Callable[[Group], bool]) -> float:
    """The share of the macs in layers that some of the groups run through."""
    those = {g for g, group in enumerate(analysis.groups) if wanted(group)}
    counts = (cost.count for cost in analysis.macs if any(those & axis.keys() for axis in cost.axes))
    return sum(counts) / sum(cost.count for cost in analysis.macs)


def _alike(analysis: Analysis, share: float) -> list[int]:
    """The largest share of every group's units that leaves at most so many of the macs."""
    full = [group.units for group in analysis.groups]
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        kept = [max(1, int(middle * n)) for n in full]
        fits = _kept(analysis, kept) <= share
        low, high = (middle, high) if fits else (low, middle)
    return [max(1, int(low * n)) for n in full]
