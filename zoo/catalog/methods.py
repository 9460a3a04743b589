"""Methods: how dense models become smaller, as far as words go; what runs them lies in `zoo.compression`.

The table stands here because listings, the reader of the catalog and the command line ask it, and none of these may
wait for torch. `zoo.compression` says how a method is added.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from zoo.declarations import Count, Positive, Whole
from zoo.errors import UnknownName

if TYPE_CHECKING:
    from zoo.catalog.entry import Budget


CALIBRATION_IMAGES = 512


class Apart(Struct, frozen=True):
    """Arguments of `zoo.compress` that may stand among a recipe's options, beside those of its method's declaration.

    Args:
        images: how many of the data set are looked at.
        seed: of what is random.
        schedule: fields of the schedule that differ from the method's own, for a method that trains.
        augment: keyword arguments of timm's training transform, for a method that trains.
        calibrate_steps: of distillation on those images alone that follow, without labels.
        rounds: in which a method goes towards its budget, each time anew with what is left of the model: no gain where
            it was measured.
        latency_ms: in place of a budget, what one image may take on this machine.
        timed_on: that machine, and how many threads.
    """

    images: Count = CALIBRATION_IMAGES
    seed: Whole = 0
    schedule: Mapping[str, Any] = {}
    augment: Mapping[str, Any] = {}
    calibrate_steps: Whole = 0
    rounds: Count = 1
    latency_ms: Positive | None = None
    timed_on: str = ""


@dataclass(frozen=True)
class Method:
    """One way to make a model smaller.

    Args:
        module: the file that runs it, with its `ALGORITHM`.
        title: of its paper or source.
        url: of the same.
        words: of what it does to a model, for the first sentence of a card.
        tags: of the Hub.
        suffix: of a compressed model's name.
        budgeted: it compresses to shares of macs and params; else it has thresholds.
        advice: what to change where it left a model as it was; empty where that is no surprise.
        relation: of the model to its base, as the Hub names it.
        tasks: that it can compress for; empty where it asks the task for all that it needs.
        passes: over all calibration images, forward, that take as long as the method does: as few and as many; None
            where that depends on thresholds or layers.
        looks: whether it sees images.
        trains: whatever follows, it trains the structure that it looks for.
        final: nothing can be trained, or compressed, after it.
        quick: options with which it takes seconds on a few images, the result being of no use.
    """

    module: str
    title: str
    url: str
    words: str
    tags: tuple[str, ...]
    suffix: str
    budgeted: bool = False
    advice: str = ""
    relation: str = "finetune"
    tasks: tuple[str, ...] = ()
    passes: tuple[int, int] | None = None
    looks: bool = True
    trains: bool = False
    final: bool = False
    quick: Mapping[str, Any] = field(default_factory=dict)


_AFM = "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!"
_PTDECO = "https://github.com/TCLResearchEurope/ptdeco"

METHODS: dict[str, Method] = {
    "prune": Method(
        "zoo.compression.prune.plan_or_graph",
        "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon",
        "https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html",
        words="channels pruned",
        tags=("pruned", "channel-pruning"),
        suffix="pruned",
        budgeted=True,
        passes=(10, 30),  # and more where layers are thousands wide
        # Elimination takes minutes on wide layers; few images leave covariances singular without a strong ridge.
        quick={"criterion": "l2", "ridge": 1.0},
    ),
    "low_rank": Method(
        "zoo.compression.low_rank.low_rank",
        "DRONE: Data-aware Low-rank Compression for Large NLP Models",
        "https://proceedings.neurips.cc/paper/2021/hash/f56de5ef149cf0aedcc8f4797031e229-Abstract.html",
        words="layers split into low-rank factors",
        tags=("low-rank",),
        suffix="lowrank",
        budgeted=True,
        passes=(10, 20),
        tasks=("image-classification", "object-detection"),  # of whose divergence it is told how it bends
    ),
    "falor": Method(
        "zoo.compression.low_rank.falor",
        _AFM,
        "https://ojs.aaai.org/index.php/AAAI/article/view/26304",
        words="layers decomposed by falor",
        tags=("low-rank",),
        suffix="falor",
        advice="raise nsr_final_threshold or kl_final_threshold",
        quick={"images": 2, "data_steps": 1, "metric_steps": 1},  # probes are cheap on so few
    ),
    "lockd": Method(
        "zoo.compression.low_rank.lockd",
        "ptdeco: local knowledge distillation",
        _PTDECO,
        words="layers decomposed by lockd",
        tags=("low-rank",),
        suffix="lockd",
        trains=True,
        advice="raise nsr_threshold, proportion_threshold or the schedule's epochs",
        quick={
            "initial_logit": 0.05,
            "start_steps": 1,
        },  # gates that hardly stand open close in two steps, some of them
    ),
    "dwain": Method(
        "zoo.compression.low_rank.dwain",
        "ptdeco: Decomposing Weights Algorithm, an Iterative techNique",
        _PTDECO,
        words="layers decomposed by dwain",
        tags=("low-rank",),
        suffix="dwain",
        trains=True,
        tasks=("image-classification",),  # perplexity is one of classes
        advice="raise trade_off_factor, max_accepted_ppl_diff or nsr_final_threshold, or lower min_rank",
    ),
    "magnitude": Method(
        "zoo.compression.magnitude",
        "Learning both Weights and Connections for Efficient Neural Networks",
        "https://arxiv.org/abs/1506.02626",
        words="small weights set to zero",
        tags=("pruned", "unstructured"),
        suffix="sparse",
        looks=False,
    ),
    "integer": Method(
        "zoo.compression.integer.integer",
        "MRT: Model Representation Tool",
        "https://github.com/CortexFoundation/cvm-runtime/blob/b5a25188/docs/mrt/model.md",
        words="quantized to integers",
        tags=("quantized", "int8"),
        suffix="int8",
        relation="quantized",
        passes=(2, 20),
        final=True,
    ),
}


def available() -> list[str]:
    """Names of the methods."""
    return list(METHODS)


def budgeted() -> list[str]:
    """Names of those that compress to a budget."""
    return [name for name in available() if METHODS[name].budgeted]


def runnable(name: str) -> Method:
    """A method of that name.

    Raises:
        UnknownName: there is none.
    """
    if name not in available():
        raise UnknownName(f"no method {name!r}: this version compresses by {', '.join(available())}")
    return METHODS[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check the names of a method's options, before its file is run and torch is waited for.

    Raises:
        UnknownName: the method has no such option.
    """
    known = _options_of(_file_of(METHODS[name].module), "ALGORITHM")
    for key in options:
        if known and key not in known and key not in Apart.__struct_fields__:
            raise unknown_option(name, key, known)


def is_final(name: str | None) -> bool:
    """Whether nothing can be trained, or compressed, after a method."""
    return name in METHODS and METHODS[name].final


def check_last(name: str | None, epochs: int, calibrate_steps: int = 0) -> None:
    """Check that nothing is trained after a method that leaves nothing to train.

    Raises:
        UnknownName: it is.
    """
    if is_final(name) and (epochs or calibrate_steps):
        raise UnknownName(f"nothing is trained after {name}: distil its base, and compress what comes of that")


def unknown_option(where: str, key: str, known: Sequence[str]) -> UnknownName:
    """The error of a field that a declaration doesn't have."""
    return UnknownName(f"{where} has no option {key!r}, known are {', '.join(known)}")


def _options_of(file: Path, name: str) -> list[str]:
    """Fields of the class of a name, or of the declaration that `ALGORITHM` has; none where none is seen."""
    for line in ast.parse(file.read_text(encoding="utf-8")).body:
        match line:
            case ast.Assign([ast.Name(id=target)], ast.Call(args=[ast.Name(id=declaration), *_])) if target == name:
                return _options_of(file, declaration)
            case ast.ClassDef(name=declared, body=body) if declared == name:
                fields = (each.target for each in body if isinstance(each, ast.AnnAssign))
                return [each.id for each in fields if isinstance(each, ast.Name)]
            case ast.ImportFrom(module=module, names=names) if any(each.name == name for each in names):
                return _options_of(_file_of(str(module)), name)
    return []


def _file_of(module: str) -> Path:
    """The file of a module; importing it would import what holds it too."""
    top, *parts = module.split(".")
    spec = find_spec(top)
    assert spec is not None
    file = Path(str(spec.origin))
    return file.parent.joinpath(*parts).with_suffix(".py") if parts else file


def check_task(name: str, task: str) -> None:
    """Check that a method can compress models of a task.

    Raises:
        UnknownName: it can't; the message names those that can.
    """
    fitting = [other for other in available() if not METHODS[other].tasks or task in METHODS[other].tasks]
    if name not in fitting:
        raise UnknownName(f"{name} can't compress models for {task}: {', '.join(fitting)} can")


def suffix(name: str, budget: "Budget | None", latency_ms: float | None = None) -> str:
    """What a compressed model's name ends in: the method and, of a budget, the share of the macs in percent, or the ms.

    >>> from zoo.catalog.entry import Budget
    >>> suffix("prune", Budget(0.5)), suffix("prune", Budget(0.004)), suffix("falor", None)
    ('pruned_50', 'pruned_0.4', 'falor')
    """
    kept = METHODS[name].suffix
    if isinstance(latency_ms, int | float):
        return f"{kept}_{latency_ms:g}ms"
    if budget is None:
        return kept
    share = 100 * budget.macs
    return f"{kept}_{share:.0f}" if share >= 1 else f"{kept}_{share:.1g}"
