"""What the recipes cost: macs of all that they train, in GPU hours at a speed that is assumed, in dollars at a price.

`zoo.verbs.training_costs` counts as much, and times it on the machine at hand; here no GPU and no data are needed.
"""

from dataclasses import dataclass
from functools import cache

from torch import nn

from builders.family import Run, noted
from zoo import catalog
from zoo.catalog.entry import Base, Entry
from zoo.compression import algorithm
from zoo.measurement.macs import measure
from zoo.structure.base import skeleton
from zoo.structure.description import config_of, configure_
from zoo.structure.sources import is_base_id
from zoo.training.distillation import shares_of
from zoo.training.schedule import Schedule, steps_of_epochs
from zoo.verbs.recipes import declarations_of, distillation_of
from zoo.verbs.training_costs import learning_macs

# TMACs a second, assumed of one A100 80 GB in bf16: on dense convolutions and plain attention, on networks with some
# depthwise convolutions or windows, on networks of depthwise convolutions, on small images.
DENSE, SOME, DEPTHWISE, SMALL = 30.0, 10.0, 4.0, 0.25
SPEED = {
    "cifar_resnet20": SMALL,
    "fbnetv3_g": DEPTHWISE,
    "efficientnetv2_b0": DEPTHWISE,
    "deit3_small": DENSE,
    "resnet18": DENSE,
    "resnet50d": DENSE,
    "convnext_femto": SOME,
    "convnextv2_nano": SOME,
    "rexnetr_200": DEPTHWISE,
    "poolformerv2_s24": SOME,
    "beit_base": DENSE,
    "efficientformerv2_s2": DEPTHWISE,
    "convformer_s18": SOME,
    "mobilevitv2_200": SOME,
    "swinv2_cr_tiny": SOME,
    "yolov8n": DENSE,
}  # the others train nothing, or for minutes on a CPU
IMAGES = {"ILSVRC/imagenet-1k": 1_281_167, "uoft-cs/cifar10": 50_000, "detection-datasets/coco": 117_266}


@dataclass(frozen=True)
class Cost:
    """What a family costs.

    Args:
        family: its script.
        hours: of one GPU, by model.
    """

    family: str
    hours: dict[str, float]

    @property
    def total(self) -> float:
        """Hours of all its models."""
        return sum(self.hours.values())


def cost(family: str, run: Run) -> Cost:
    """What the models of a family cost that a run would make.

    Raises:
        UnknownName: the family has no such model.
    """
    return Cost(family, {entry.name: hours(entry, family, run.steps) for entry in noted(family, run)})


def hours(entry: Entry, family: str, steps: int | None = None) -> float:
    """GPU hours of one model; none where the family has no speed."""
    speed = SPEED.get(family)
    return macs(entry, steps) / (speed * 1e12 * 3600) if speed else 0.0


def macs(entry: Entry, steps: int | None = None) -> float:
    """Multiply-accumulates of all trainings of a recipe: three times the student's forward pass, and the teachers'."""
    recipe = entry.recipe
    (schedule, how), (method, learns) = distillation_of(recipe), declarations_of(recipe)
    counts = [_dense_macs(teacher) for teacher in recipe.teachers]
    taught = sum(a * b for a, b in zip(shares_of(len(counts), how), counts, strict=True)) if counts else 0.0
    total = _seen(entry, schedule, steps) * (3 * _student(entry) + taught)
    trained = algorithm(recipe.method).trained if recipe.method else None
    if trained and learns and learns.epochs:
        learnt = learning_macs(_dense(entry.base, entry.input), trained, method)
        total += learnt.times * _seen(entry, learns, steps) * (3 * learnt.forward + learnt.beside)
    return total


def _seen(entry: Entry, schedule: Schedule, steps: int | None) -> int:
    """Images that a training sees, one as often as it is seen."""
    data = IMAGES[entry.recipe.data or ""]
    taken = steps_of_epochs(schedule, data // schedule.batch_size)
    return schedule.batch_size * min(taken, steps or taken)


def _student(entry: Entry) -> float:
    """Macs of the smaller model: by its budget, or by what the source reports of what it cut by a threshold."""
    budget = entry.recipe.budget
    if entry.recipe.method is None:
        return measure(_dense(entry.base, entry.input)).macs
    if budget:
        return budget.macs * _dense_macs(entry.base.id if entry.base else "", entry.input)
    reported = next(row.figures["kmapp"] for row in entry.reported if "kmapp" in row.figures)
    return reported * 1000 * entry.input[-2] * entry.input[-1] / 2


@cache
def _dense_macs(name: str, size: tuple[int, int, int] | None = None) -> int:
    return measure(_dense(Base(name), size)).macs


def _dense(base: Base | None, size: tuple[int, int, int] | None) -> nn.Module:
    """A base on the meta device, seeing images of a size or of its own; of one that isn't built yet, what it is of."""
    assert base is not None  # or nothing could be built
    known = None if is_base_id(base.id) else catalog.info(base.id).base
    model = skeleton(known or base).eval()
    configure_(model, {**config_of(model), **({"input_size": size} if size else {})})
    return model
