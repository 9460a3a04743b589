"""Entry: one model of the catalog, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import BudgetError, StructureError

METHODS = ("prune", "low_rank", "falor", "lockd", "dwain", "magnitude", "integer")
STATUSES = ("published", "origin", "embedded", "recipe")


@dataclass(frozen=True)
class Base:
    """A dense architecture, and its weights, by id.

    Args:
        id: `timm/<architecture>[.<tag>]` (the tag names the dense weights), or the name of an entry of the catalog.
        args: keyword arguments of `timm.create_model` for that architecture.
    """

    id: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The id without source and tag.

        Raises:
            StructureError: the id doesn't name a timm architecture.
        """
        source, _, name = self.id.partition("/")
        if source != "timm" or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise StructureError(f"base {self.id!r} isn't known, expected timm/<architecture>")
        return name.partition(".")[0]


@dataclass(frozen=True)
class Budget:
    """Shares of the base that are kept.

    Args:
        macs: kept share of the multiply-accumulates, 0..1.
        params: kept share of the parameters, 0..1; None leaves them free.

    Raises:
        BudgetError: a share isn't a number above 0 and at most 1.
    """

    macs: float
    params: float | None = None

    def __post_init__(self) -> None:
        for what, share in (("macs", self.macs), ("params", self.params)):
            if share is None and what == "params":
                continue
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise BudgetError(f"budget of {share} of the {what} can't be met: expected a share above 0, at most 1")


@dataclass(frozen=True)
class Recipe:
    """How an entry is made.

    Args:
        method: one of `METHODS`; None for a dense model trained from scratch.
        budget: what the method may keep.
        options: fields of the method's own declaration that differ from its defaults.
        data: the data set trained and evaluated on, as `--data` takes it.
        teachers: names or ids, from smaller to larger; they take over from one another as training proceeds.
        distil: fields of the distillation's declaration that differ from its defaults.
        schedule: fields of the training schedule that differ from its defaults.
        augment: keyword arguments of timm's training transform.
        seed: of initialisation, order and augmentation.
    """

    method: str | None = None
    budget: Budget | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    teachers: tuple[str, ...] = ()
    distil: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """One figure as its source reports it.

    Args:
        metric: `top1`, `map`, ... ; with `value` 0..1. None where the source gives counts alone.
        value: of the metric.
        input: side of the square input in pixels.
        params_m: millions of parameters.
        kmapp: 2·macs/(1000·H·W).
        counting: the convention of the counts, where it isn't ours.
        source: where it stands, if not the entry's source.
    """

    metric: str | None = None
    value: float | None = None
    input: int | None = None
    params_m: float | None = None
    kmapp: float | None = None
    counting: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Origin:
    """A foreign repository that an entry's weights are converted from."""

    repo: str
    format: str
    commit: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model: what it is, what is claimed of it, where its weights are, and how it is made.

    Args:
        name: unique in the catalog.
        family: entries of one architecture (the catalog file's name).
        architecture: timm's name of the dense architecture.
        task: the Hub's pipeline tag.
        status: `published`, `origin`, `embedded` or `recipe`.
        base: the dense model that it is made from; None where no such model exists yet.
        license: SPDX id as the base imposes it.
        dataset: the Hub's data set id, or our own name of it.
        input: channels, height, width of one input.
        source: where the figures and the recipe come from.
        recipe: how it is made.
        reported: figures as the source gives them.
        origin: a foreign repository to convert.
        repo: our own repository, `org/name`.
        revision: its commit, 40 hex digits.
        note: what a reader must know.
    """

    name: str
    family: str
    architecture: str
    task: str
    status: str
    base: Base | None = None
    license: str | None = None
    dataset: str | None = None
    input: tuple[int, int, int] = (3, 224, 224)
    source: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    reported: tuple[Figure, ...] = ()
    origin: Origin | None = None
    repo: str | None = None
    revision: str | None = None
    note: str | None = None
