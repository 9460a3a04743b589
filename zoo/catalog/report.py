"""What was measured of a model, beside what was reported of it: values only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs, to_builtins

from zoo.declarations import (
    Count,
    FigureName,
    Finite,
    ModelName,
    Name,
    Package,
    Version,
    Whole,
    validated,
)
from zoo.errors import RepositoryError

COSTS = ("params", "nonzero", "macs", "kmapp", "weights_bytes")  # which need no images
OBJECTS = "objects"  # of a class, that its other figures are of
MAX_LABELS = 200_000  # names that a report may have
MAX_FIGURES = 100
MAX_OF_CLASS = 10  # figures of one class
Versions = Annotated[Mapping[Package, Version], Meta(max_length=100)]


@dataclass(frozen=True)
class Row:
    """One figure: reported, measured, and whether the two agree.

    Args:
        figure: its name with the unit in it (`params_m`, `macs_m`, `kmapp`, `top1`).
        reported: the figure as claimed, or None where nobody claimed one.
        measured: the figure as measured here, or None where it couldn't be.
        tolerance: the largest absolute difference that still agrees.
        note: why the two aren't held against each other, where they aren't.
        of: the class that the figure is of; empty of all of them.
    """

    figure: Name
    reported: Finite | None
    measured: Finite | None
    tolerance: Finite = 0.0
    note: Name = ""
    of: Name = ""

    @property
    def difference(self) -> float | None:
        """Measured less reported; None where either is missing."""
        return None if self.reported is None or self.measured is None else self.measured - self.reported

    @property
    def verdict(self) -> str:
        """`agrees`, `differs`, `measured` where nothing was reported, `not measured`, or the note."""
        if self.difference is None:
            return "measured" if self.measured is not None else "not measured"
        if self.note:
            return self.note
        return "agrees" if abs(self.difference) <= self.tolerance + 1e-12 else "differs"


Channels = Annotated[list[Finite], Meta(max_length=1_000)]


class Reading(Struct):
    """What a report says of its data: what `verify` needs to read it again, and a card to tell of it."""

    dataset: Name = ""
    split: Name = ""
    images: Count = 1
    input: Annotated[list[Count], Meta(min_length=3, max_length=3)] | None = None
    interpolation: Name = ""
    crop_pct: Finite | None = None
    mean: Channels | None = None
    std: Channels | None = None
    sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z", description="64 hexadecimal digits")] = ""
    against: Name = ""
    against_sha256: Name = ""
    left_out: Whole = 0
    skip_damaged: bool = False
    classes: Whole = 0  # that the data has, where the model has more
    labels: (
        Annotated[dict[Name, Name | int], Meta(max_length=MAX_LABELS)]  # a class may be told by its number
        | Annotated[list[Name], Meta(max_length=MAX_LABELS)]
        | None
    ) = None


class Verified(Struct, frozen=True, forbid_unknown_fields=True):
    """How a report's figures stood to what was claimed when they were measured.

    Args:
        rows: claimed beside measured.
        asked: sha256 of the model, its claims, the data's name and files, and the settings that it was measured by.
    """

    rows: Annotated[tuple[Row, ...], Meta(max_length=MAX_OF_CLASS * MAX_LABELS)]
    asked: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="64 hexadecimal digits")]


class Forgotten(Struct, frozen=True, forbid_unknown_fields=True, rename={"name": "class"}):
    """A class of which a model knows significantly fewer images than its reference.

    Args:
        name: of the class.
        images: how many there are of it.
        before: how many of them the reference knew.
        lost: how many of those the model doesn't.
        won: how many others it does.
        taken_for: class → how many of the lost ones are taken for it; those it is most.
    """

    name: Name
    images: Count
    before: Whole
    lost: Whole
    won: Whole
    taken_for: Annotated[Mapping[Name, Count], Meta(max_length=MAX_OF_CLASS)]


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """The measurements of one model, with what is needed to repeat them.

    Args:
        name: the model.
        measured: figure → value; units stand in the key (`params`, `macs`, `kmapp`, `top1`).
        data: the data set, how it was read, split, number of images, their sha256 (`zoo.tasks.identity`), and the
            preprocessing of the accuracy; empty if none was measured.
        versions: package → version.
        hardware: the machine that measured.
        classes: class → its figures, of tasks that tell them apart: `objects`, how many of it there are in the data,
            and others where there are any.
        verified: what they were held against, where `zoo verify --save` wrote them.
        forgotten: the classes that it forgot of what its reference knew; None where it forgot none, or had none.
    """

    name: ModelName
    measured: Annotated[Mapping[FigureName, Finite], Meta(max_length=MAX_FIGURES)]
    data: Annotated[Mapping[Name, Any], Meta(max_length=MAX_FIGURES)] = {}
    versions: Versions = {}
    hardware: Name = ""
    schema: Literal[1] = 1
    classes: Annotated[
        Mapping[Name, Annotated[Mapping[FigureName, Finite], Meta(max_length=MAX_OF_CLASS)]],
        Meta(max_length=MAX_LABELS),
    ] = {}
    verified: Verified | None = None
    forgotten: Annotated[Sequence[Forgotten], Meta(max_length=MAX_FIGURES)] | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object, which earlier versions read where it says nothing of classes, nor rows."""
        said = {"schema": self.schema, **structs.asdict(self)}
        late = ("classes", "verified", "forgotten")
        said |= {key: to_builtins(said[key]) for key in late}
        return {key: value for key, value in said.items() if key not in late or value}

    @classmethod
    def from_json(cls, data: Any, where: str = "report") -> "Report":
        """Read what `to_json` wrote.

        Raises:
            RepositoryError: a key is unknown or missing, or a value isn't what it must be.
        """
        report: Report = validated(cls, data, f"{where}:", RepositoryError)
        validated(Reading, report.data, f"{where}: data", RepositoryError)
        return report


@dataclass(frozen=True)
class Verification:
    """A model's figures, claimed beside measured.

    Args:
        name: the model.
        rows: one for each figure.
        report: what was measured, in full.
    """

    name: str
    rows: tuple[Row, ...]
    report: Report

    @property
    def unjudged(self) -> str:
        """Why nothing of what is claimed on images could be held against it; empty where something was."""
        claimed = [row for row in self.rows if row.difference is not None and row.figure in self.report.measured]
        of_images = [row for row in claimed if row.figure not in COSTS]
        notes = {row.note for row in of_images}
        return ", ".join(sorted(notes)) if "" not in notes else ""

    @property
    def passed(self) -> bool:
        """Whether every figure that is claimed was measured and agrees, and one on images where some are claimed."""
        return not self.unjudged and not any(row.verdict in ("differs", "not measured") for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The verification as a JSON object."""
        rows = [{**asdict(row), "difference": row.difference, "verdict": row.verdict} for row in self.rows]
        verdict = {"passed": self.passed, "unjudged": self.unjudged}
        return {"name": self.name, **verdict, "rows": rows, "report": self.report.to_json()}
