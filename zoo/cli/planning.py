"""What `zoo compress --plan-only` prints: what becomes of each layer, before anything is trained."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msgspec import to_builtins

from zoo.catalog.changes import Changes, Layer, Pair, became, share
from zoo.catalog.entry import Entry
from zoo.cli.building import saying
from zoo.cli.tables import say, say_json, table


def planned(entry: Entry, out: Path | None, as_json: bool) -> None:
    """Compress as an entry says, train nothing, and print what became of each layer.

    Args:
        entry: the recipe.
        out: folder of the repository that the same command makes without --plan-only, which goes on from here; the
            plot lies beside it. None keeps nothing.
        as_json: print JSON.
    """
    from zoo.pages.changed import plot
    from zoo.verbs.changing import changes_of

    with _folder(out) as folder, saying() as tell:
        found = changes_of(entry, folder, tell)
        if out is not None:
            plot(found, drawn := out.with_name(f"{out.name}.plan.png"))
            tell(f"plot: {drawn}")
    if as_json:
        say_json(to_builtins(found))
    else:
        _print(found)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="zoo-plan-") as folder:
        yield Path(folder) / "model"


def _print(found: Changes) -> None:
    head = ["layer", "units", "macs", "saved", "params", "saved", "why it stays"]
    table(head, [[layer.path, became(layer), *_counts(layer, found), layer.stays] for layer in found.layers])
    macs, params = found.other
    say(f"of no layer: {share('macs', macs)}, {share('params', params)}")
    say(str(found))


def _counts(layer: Layer, found: Changes) -> list[str]:
    """What a layer has left, and which share of the whole dense model's that saves."""
    return [*_count(layer.macs, found.macs), *_count(layer.params, found.params)]


def _count(pair: Pair, whole: Pair) -> tuple[str, str]:
    return f"{pair[1]:,}", f"{(pair[0] - pair[1]) / max(whole[0], 1):.1%}"
