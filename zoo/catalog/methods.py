"""Methods: how dense models become smaller, as far as words go; what runs them lies in `zoo.compression`.

The table stands here because listings, the reader of the catalog and the command line ask it, and none of these may
wait for torch. `zoo.compression` says how a method is added.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.errors import UnknownName

if TYPE_CHECKING:
    from zoo.catalog.entry import Budget


@dataclass(frozen=True)
class Method:
    """One way to make a model smaller.

    Args:
        module: the file that runs it, with its `ALGORITHM`; None of a method whose published models are known, but
            which this version can't run.
        title: of its paper or source.
        url: of the same.
        words: of what it does to a model, for the first sentence of a card.
        tags: of the Hub.
        suffix: of a compressed model's name.
        budgeted: it compresses to shares of macs and params; else it has thresholds.
        advice: what to change where it left a model as it was; empty where that is no surprise.
        relation: of the model to its base, as the Hub names it.
        tasks: that it can compress for; empty where it asks the task for all that it needs.
        quick: options with which it takes seconds on a few images, the result being of no use.
    """

    module: str | None
    title: str
    url: str
    words: str
    tags: tuple[str, ...]
    suffix: str
    budgeted: bool = False
    advice: str = ""
    relation: str = "finetune"
    tasks: tuple[str, ...] = ()
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
        tasks=("image-classification",),  # the Fisher information is that of classes
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
        tasks=("image-classification",),  # perplexity is one of classes
        advice="raise trade_off_factor, max_accepted_ppl_diff or nsr_final_threshold, or lower min_rank",
    ),
    "magnitude": Method(
        None,
        "Learning both Weights and Connections for Efficient Neural Networks",
        "https://arxiv.org/abs/1506.02626",
        words="small weights set to zero",
        tags=("pruned", "unstructured"),
        suffix="sparse",
    ),
    "integer": Method(
        None,
        "MRT: Model Representation Tool",
        "https://github.com/CortexFoundation/cvm-runtime/blob/b5a25188/docs/mrt/model.md",
        words="quantized to 8-bit integers",
        tags=("quantized", "int8"),
        suffix="int8",
        relation="quantized",
    ),
}


def available() -> list[str]:
    """Names of the methods that this version can run."""
    return [name for name, method in METHODS.items() if method.module]


def budgeted() -> list[str]:
    """Names of those that compress to a budget."""
    return [name for name in available() if METHODS[name].budgeted]


def runnable(name: str) -> Method:
    """A method that this version can run.

    Raises:
        UnknownName: it can't, or there is none of that name.
    """
    if name not in available():
        raise UnknownName(f"no method {name!r}: this version compresses by {', '.join(available())}")
    return METHODS[name]


def check_task(name: str, task: str) -> None:
    """Check that a method can compress models of a task.

    Raises:
        UnknownName: it can't; the message names those that can.
    """
    fitting = [other for other in available() if not METHODS[other].tasks or task in METHODS[other].tasks]
    if name not in fitting:
        raise UnknownName(f"{name} can't compress models for {task}: {', '.join(fitting)} can")


def suffix(name: str, budget: "Budget | None") -> str:
    """What a compressed model's name ends in: the method and, of a budget, the share of the macs in percent.

    >>> from zoo.catalog.entry import Budget
    >>> suffix("prune", Budget(0.5)), suffix("prune", Budget(0.004)), suffix("falor", None)
    ('pruned_50', 'pruned_0.4', 'falor')
    """
    kept = METHODS[name].suffix
    if budget is None:
        return kept
    share = 100 * budget.macs
    return f"{kept}_{share:.0f}" if share >= 1 else f"{kept}_{share:.1g}"
