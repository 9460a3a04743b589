"""What was measured of a model, beside what was reported of it: values only."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
MOST_LABELS, LONGEST = 200_000, 1_000  # names that a report may have, and characters of one


@dataclass(frozen=True)
class Row:
    """One figure: reported, measured, and whether the two agree.

    Args:
        figure: its name with the unit in it (`params_m`, `macs_m`, `kmapp`, `top1`).
        reported: the figure as claimed, or None where nobody claimed one.
        measured: the figure as measured here, or None where it couldn't be.
        tolerance: the largest absolute difference that still agrees.
        note: why the two aren't held against each other, where they aren't.
    """

    figure: str
    reported: float | None
    measured: float | None
    tolerance: float = 0.0
    note: str = ""

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


@dataclass(frozen=True)
class Report:
    """The measurements of one model, with what is needed to repeat them.

    Args:
        name: the model.
        measured: figure → value; units stand in the key (`params`, `macs`, `kmapp`, `top1`).
        data: the data set, how it was read, split, number of images and preprocessing of the accuracy; empty if none
            was measured.
        versions: package → version.
        hardware: the machine that measured.
    """

    name: str
    measured: Mapping[str, float]
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Report":
        """Read what `to_json` wrote.

        Raises:
            ValueError: a key is missing or a figure isn't a finite number.
        """
        for key in ("name", "measured"):
            if key not in data:
                raise ValueError(f"no key {key!r}")
        measured = data["measured"]
        if not isinstance(measured, Mapping):
            raise ValueError("measured isn't an object")
        for figure, value in measured.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
                raise ValueError(f"measured.{figure} is {value!r}, expected a finite number")
        if not isinstance(data.get("data", {}), Mapping) or not isinstance(
            data.get("data", {}).get("dataset", ""), str
        ):
            raise ValueError("data isn't an object with the name of a data set")
        _check_reading(data.get("data", {}))
        return cls(
            name=data["name"],
            measured=dict(measured),
            data=dict(data.get("data", {})),
            versions=dict(data.get("versions", {})),
            hardware=str(data.get("hardware", "")),
        )


def _check_reading(data: Mapping[str, Any]) -> None:
    """Check what a report says of how its data was read.

    Raises:
        ValueError: it is no plain data, or too much.
    """
    if type(data.get("skip_damaged", False)) is not bool:
        raise ValueError("data.skip_damaged isn't true or false")
    labels = data.get("labels")
    if labels is None:
        return
    if not isinstance(labels, dict | list) or len(labels) > MOST_LABELS:
        raise ValueError(f"data.labels isn't an object or a list of at most {MOST_LABELS:,} names")
    values = labels.values() if isinstance(labels, dict) else labels
    plain = (str, int) if isinstance(labels, dict) else (str,)  # a class may be told by its number
    if not all(type(each) in plain for each in values) or any(len(str(each)) > LONGEST for each in (*labels, *values)):
        raise ValueError(f"data.labels has what is no name of at most {LONGEST:,} characters")


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
    def passed(self) -> bool:
        """Whether every figure that is claimed was measured, and agrees where it can be judged."""
        return not any(row.verdict in ("differs", "not measured") for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The verification as a JSON object."""
        rows = [{**asdict(row), "difference": row.difference, "verdict": row.verdict} for row in self.rows]
        return {"name": self.name, "passed": self.passed, "rows": rows, "report": self.report.to_json()}
