"""How tasks on a cluster fare, on stderr: a table on a terminal, elsewhere a line when one begins or ends."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import click

from zoo.cli.tables import say
from zoo.cluster import Ended, Running, Task, each
from zoo.printable import printable

ROWS = 20  # of those that run; a terminal has no room for more
on_cluster = click.option(
    "--on",
    "address",
    metavar="ADDRESS",
    help="One task a model on a Ray cluster: HOST:PORT of its head, or auto, which starts Ray here.",
)


def carried_out(tasks: Sequence[Task], address: str) -> Iterator[Ended]:
    """Run tasks on a cluster, and show how they fare; arguments, results and errors are those of `zoo.cluster.each`."""
    with (_Table if sys.stderr.isatty() else _Lines)(len(tasks)) as shown:
        for ended in each(tasks, address, shown.watch):
            shown.end(ended)
            yield ended


class _Lines:
    """A line when a task begins, on which node and for which time, and when it ends."""

    def __init__(self, total: int) -> None:
        self.total, self.ended, self.failed = total, 0, 0
        self.began: dict[str, tuple[int, float]] = {}  # name → tries so far, when the last of them was seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def watch(self, running: Mapping[str, Running]) -> None:
        for name, now in running.items():
            if self.began.get(name, (0, 0.0))[0] != now.tries:
                self.began[name] = now.tries, time.monotonic()
                self.begin(name, now)

    def begin(self, name: str, now: Running) -> None:
        say(f"{name}: {'begins' if now.tries == 1 else f'try {now.tries} begins'} on {now.node}", err=True)

    def end(self, ended: Ended) -> None:
        self.ended += 1
        self.failed += bool(ended.error)
        if not ended.error:
            say(f"{ended.name}: done in {self.seconds(ended.name):.0f} s, {self.ended} of {self.total}", err=True)

    def seconds(self, name: str) -> float:
        return time.monotonic() - self.began[name][1] if name in self.began else 0.0


class _Table(_Lines):
    """Those that run, with what each said last, and how many ended."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from rich.console import Console
        from rich.live import Live

        self.live = Live(console=Console(stderr=True), refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def watch(self, running: Mapping[str, Running]) -> None:
        super().watch(running)
        self.live.update(self.table(running))

    def begin(self, name: str, now: Running) -> None:
        if now.tries > 1:
            super().begin(name, now)

    def end(self, ended: Ended) -> None:
        self.ended += 1
        self.failed += bool(ended.error)

    def table(self, running: Mapping[str, Running]) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        waiting = self.total - self.ended - len(running)
        counts = f"{self.ended - self.failed} done, {self.failed} failed, {len(running)} running, {waiting} waiting"
        grid = Table(box=box.SIMPLE, title=counts, title_justify="left", pad_edge=False)
        for title in ("model", "node", "state", "since"):
            grid.add_column(title, no_wrap=True)
        for name, now in [*running.items()][:ROWS]:
            state = printable(now.said or "begins", 60) + (f", try {now.tries}" if now.tries > 1 else "")
            grid.add_row(*map(Text, (name, now.node, state, f"{self.seconds(name):.0f} s")))
        return grid
