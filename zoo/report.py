"""What was measured of a model, beside what was reported of it: values only."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1


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
        data: the data set, split, number of images and preprocessing of the accuracy; empty if none was measured.
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
        return cls(
            name=data["name"],
            measured=dict(measured),
            data=dict(data.get("data", {})),
            versions=dict(data.get("versions", {})),
            hardware=str(data.get("hardware", "")),
        )


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
