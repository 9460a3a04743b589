"""Entry: one model of the catalog, as a value."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from zoo.catalog.methods import METHODS
from zoo.declarations import Count, Finite, ModelName, Positive, Share, Whole, one_of, validate
from zoo.errors import BudgetError

STATUSES = ("published", "origin", "embedded", "recipe")
LIBRARIES = ("timm", "torchvision", "zoo")  # of dense architectures; zoo.structure.sources builds them
COUNTING_NAMES = ("ptdeco", "torch-dag")  # published ways of counting kmapp; zoo.measurement.conventions does them

# Shares are 0..1. `map` is COCO's mAP50-95, `map50` VOC's; `speedup` is the share of the latency that is saved;
# `params_size` is MRT's "Params Size", MiB of its integer file: weights of one byte, biases and constants of four.
FIGURES = (
    "top1",
    "top5",
    "map",
    "map50",
    "params_m",
    "kmapp",
    "latency_ms",
    "latency_std_ms",
    "speedup",
    "params_size",
)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

Input = Annotated[tuple[Count, Count, Count], Meta(description="channels, height and width")]


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an image becomes an input, by timm's names.

    Args:
        mean: of each channel.
        std: of each channel.
        interpolation: how it is resized.
        crop_pct: which share of the resized side the crop takes.
    """

    mean: Annotated[tuple[Finite, ...], Meta(description="a number for each channel")] | None = None
    std: Annotated[tuple[Positive, ...], Meta(description="a number for each channel, above 0")] | None = None
    interpolation: Annotated[str, one_of(INTERPOLATIONS)] | None = None
    crop_pct: Share | None = None


class Base(Struct, frozen=True, forbid_unknown_fields=True):
    """A dense architecture, and its weights, by id.

    Args:
        id: `timm/<architecture>[.<tag>]` (the tag names the dense weights), `torchvision/<architecture>[.<weights>]`,
            `zoo/<architecture>` of `zoo.models`, or the name of an entry of the catalog.
        args: keyword arguments of that architecture, as `timm.create_model`, or torchvision's function, takes them.
    """

    id: str
    args: Mapping[str, Any] = {}

    @property
    def source(self) -> str:
        """The library that has the architecture; empty where the id is that of an entry, a folder or a repository."""
        source, slash, _ = self.id.partition("/")
        return source if slash and source in LIBRARIES else ""

    @property
    def architecture(self) -> str:
        """The id without source and tag."""
        return self.id.partition("/")[2].partition(".")[0]


class Budget(Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of the base that are kept.

    Args:
        macs: kept share of the multiply-accumulates, 0..1.
        params: kept share of the parameters, 0..1; None leaves them free.

    Raises:
        BudgetError: a share isn't a number above 0 and at most 1.
    """

    macs: Share
    params: Share | None = None

    def __post_init__(self) -> None:
        validate(self, "budget", BudgetError)


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """How an entry is made.

    Args:
        method: one of `zoo.catalog.methods.METHODS`; None for a dense model trained from scratch.
        budget: what the method may keep.
        options: fields of the method's own declaration that differ from its defaults, and as `zoo.compress` takes them
            `images`, `calibrate_steps` and, of a method that trains, `schedule`.
        data: the data set trained and evaluated on, as `--data` takes it.
        skip_damaged: leave out its images that can't be decoded.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        teachers: names or ids, from smaller to larger; they take over from one another as training proceeds.
        distil: fields of the distillation's declaration that differ from its defaults.
        schedule: fields of the training schedule that differ from its defaults.
        augment: keyword arguments of timm's training transform.
        seed: of initialisation, order and augmentation.
        note: what of it the source doesn't say, so that it is ours.
    """

    method: Annotated[str, one_of(METHODS)] | None = None
    budget: Budget | None = None
    options: Mapping[str, Any] = {}
    data: str | None = None
    teachers: tuple[str, ...] = ()
    distil: Mapping[str, Any] = {}
    schedule: Mapping[str, Any] = {}
    augment: Mapping[str, Any] = {}
    seed: Whole = 0
    note: str | None = None
    skip_damaged: bool = False
    labels: Mapping[str, str | int] | Sequence[str] | None = None


def reading(recipe: Recipe) -> dict[str, Any]:
    """How a recipe's data is read, as keyword arguments."""
    return {"skip_damaged": recipe.skip_damaged, "labels": recipe.labels}


class Reported(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of a source's table: figures as the source gives them, and what they hold for.

    Args:
        figures: figure → value, as in `zoo.catalog.report.Report.measured`; those of `FIGURES`.
        of: the model, where it isn't the entry itself: the id of its base or teacher, or the source's name of it.
        input: side of the square input in pixels.
        images: how many images were evaluated.
        batch: images of one forward pass.
        device: that latencies hold for.
        runtime: the program that ran it, where the source tells them apart.
        counting: the convention of `kmapp`: a key of `zoo.measurement.conventions.COUNTINGS`; None is our own.
        source: where the row stands, if not in the entry's source.
    """

    figures: Mapping[str, Finite]
    of: str | None = None
    input: Count | None = None
    images: Count | None = None
    batch: Count | None = None
    device: str | None = None
    runtime: str | None = None
    counting: Annotated[str, one_of(COUNTING_NAMES)] | None = None
    source: str | None = None


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """A foreign repository that an entry's weights are converted from.

    Args:
        repo: `org/name`, as it is spelt there.
        format: `torch-dag`, `ptdeco` or `timm`.
        commit: where it is known, in full or shortened.
        sha256: of the weights' file, where it is known.
    """

    repo: str
    format: str
    commit: str | None = None
    sha256: str | None = None


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One model: what it is, what is claimed of it, where its weights are, and how it is made.

    Args:
        name: unique in the catalog.
        project: where the work comes from (the name of the catalog file's folder).
        family: entries of one architecture (the catalog file's name).
        architecture: timm's name of the dense architecture.
        task: the Hub's pipeline tag.
        status: `published`, `origin`, `embedded` or `recipe`.
        base: the dense model that it is made from; None where no such model exists yet.
        license: the Hub's id of it, as the base imposes it.
        dataset: the Hub's data set id, or our own name of it.
        input: channels, height, width of one input.
        preprocessing: what is known of it, and wins over what timm has of the base: fields of `Preprocessing`.
        source: where the figures and the recipe come from.
        recipe: how it is made.
        reported: what the source says of this model.
        baselines: what it says of the dense models beside it, `of` whom each row names.
        origin: a foreign repository to convert.
        repo: our own repository, `org/name`.
        revision: its commit, 40 hex digits.
        note: what a reader must know.
    """

    name: ModelName
    project: str
    family: str
    architecture: str
    task: str
    status: Annotated[str, one_of(STATUSES)]
    base: Base | None = None
    license: str | None = None
    dataset: str | None = None
    input: Input = (3, 224, 224)
    preprocessing: Mapping[str, Any] = {}
    source: str | None = None
    recipe: Recipe = Recipe()
    reported: tuple[Reported, ...] = ()
    baselines: tuple[Reported, ...] = ()
    origin: Origin | None = None
    repo: str | None = None
    revision: str | None = None
    note: str | None = None


def own(name: str, architecture: str, task: str, **more: Any) -> Entry:
    """The entry of a model that isn't in the catalog; arguments are fields of `Entry`."""
    more = {"project": "own", "family": architecture, "status": "recipe", **more}
    return Entry(name, architecture=architecture, task=task, **more)
