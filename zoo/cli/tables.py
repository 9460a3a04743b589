"""How results are printed: tables, figures, counts."""

import sys
from typing import Any

import click

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def figure(value: float | None) -> str:
    """A measured figure: whole numbers in groups of three, others with four digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"


def three_digits(value: float | None) -> str:
    """A count in three digits: 1.5G."""
    if value is None:
        return "-"
    unit, size = next((unit, size) for unit, size in reversed(UNITS.items()) if value >= size or not unit)
    return f"{value / size:.3g}{unit}"


def table(head: list[str], rows: list[list[Any]]) -> None:
    """Print a table; a narrow terminal breaks the other columns before it cuts the first."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE, show_header=any(head), pad_edge=False)
    for number, title in enumerate(head):
        grid.add_column(title, no_wrap=number == 0, overflow="fold", min_width=_widest(rows) if number == 0 else None)
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(grid)


def _widest(rows: list[list[Any]]) -> int:
    return max((len(str(row[0])) for row in rows), default=0)
