"""How results are printed: lines, JSON, tables, figures, counts. Nothing else writes to the terminal."""

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from zoo.printable import MAX_LINE, printable

LONG = 1_000  # rows; a longer table isn't broken to the terminal's width, which takes half a millisecond a row
MAX_NAME = 100  # characters of a table's first column, which takes its place from the others
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_begun: list[str] = []  # what stands on stderr without an end
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


def say(line: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a line of whatever anybody wrote; on stderr below one that has no end yet, and above a bar."""
    text = printable(line, MAX_LINE)
    if err and _begun:
        _begun.clear()
        text = f"\n{text}"
    with _above_bars(err):
        click.echo(text, err=err, nl=nl)  # noqa: TID251  # this is the place


def say_begun(line: str) -> None:
    """Print on stderr what begins; where no bar can follow on a terminal, what it took ends the same line."""
    say(line, err=True, nl=sys.stderr.isatty())
    if not sys.stderr.isatty():
        _begun.append(line)


def say_took(seconds: float) -> None:
    """Print how long it took, behind what `say_begun` printed or, if something else was said, below that."""
    _begun.clear()
    say(f"  {seconds:.1f} s", err=True)


def _above_bars(err: bool) -> AbstractContextManager[Any]:
    """Where a bar is drawn on the terminal, it stands below what is printed meanwhile."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None or not err or not sys.stderr.isatty():
        return nullcontext()
    return tqdm.tqdm.external_write_mode(file=sys.stderr)  # type: ignore[no-any-return]


def say_json(data: Any) -> None:
    """Print JSON in ASCII, which has null for what is no number."""
    try:
        text = json.dumps(data, indent=2, allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(data), parse_constant=lambda _: None), indent=2)
    click.echo(text.replace("\x7f", "\\u007f"))  # noqa: TID251


def table(head: list[str], rows: list[list[Any]]) -> None:
    """Print a table; a narrow terminal breaks the other columns before it cuts the first, a long table is as it is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    longest = [MAX_NAME, *[MAX_LINE] * (len(head) - 1)]
    titles, *cells = [[*map(printable, map(str, row), longest)] for row in (head, *rows)]
    if len(cells) > LONG:
        _say_columns([titles, *cells])
        return
    widest = max((len(row[0]) for row in cells), default=0)
    grid = Table(box=box.SIMPLE, show_header=any(titles), pad_edge=False)
    for number, title in enumerate(titles):
        first = number == 0
        grid.add_column(Text(title), no_wrap=first, overflow="fold", min_width=widest if first else None)
    for row in cells:
        grid.add_row(*map(Text, row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(grid)


def _say_columns(rows: list[list[str]]) -> None:
    """Lines of cells below one another, and one under the first."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ("   ".join(map(set_cell_size, row, widths)).rstrip() for row in rows)
    click.echo("\n".join([head, "─" * (sum(widths) + 3 * len(widths) - 3), *lines]))  # noqa: TID251  # cells are printable
