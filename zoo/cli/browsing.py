"""`zoo browse`: the catalog as a page."""

from pathlib import Path

import click

from zoo.cli.tables import say
from zoo.errors import RepositoryError
from zoo.files import read_json

TITLE = "Compressed vision models"


@click.command(epilog="\b\nzoo browse\nzoo browse ./build/mine --out site")
@click.argument(
    "folders", nargs=-1, metavar="[FOLDERS]...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Write the page there; it opens from the disk."
)
@click.option("--push", "space", metavar="ORG/SPACE", help="Publish it as a static Space of the Hub.")
@click.option(
    "--latency",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What zoo bench --json printed, as a column.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0 takes any free one.")
def browse(folders: tuple[Path, ...], out: Path | None, space: str | None, latency: Path | None, port: int) -> None:
    """Show the catalog, and repositories of yours, as a page for the browser.

    A table to sort and filter, accuracy against costs, and of each model how to load it, its card and what was cut.
    FOLDERS are repositories. Without --out or --push the page is served on this machine, until Ctrl-C.
    """
    from zoo.pages.browse import rows, serving, site

    timed = rows.latencies(read_json(latency), str(latency)) if latency else {}
    elsewhere = out is not None or space is not None  # where nobody has this machine's folders
    own = [rows.of_folder(each, _place(each, elsewhere), timed.get(str(each))) for each in dict.fromkeys(folders)]
    files = site.files([*own, *rows.of_catalog(timed)])
    if out is not None:
        site.write(files, out)
        say(str(out / site.PAGE))
    if space is not None:
        from zoo.hub.remote import ID
        from zoo.hub.spaces import publish_space

        if not ID.fullmatch(space):
            raise RepositoryError(f"{space} isn't ORG/SPACE on the Hub: for a folder say --out {space}")
        say(publish_space(files, space, TITLE))
    if not elsewhere:
        serving.serve(files, port, lambda address: say(f"{address}  (Ctrl-C ends it)"))


def _place(folder: Path, elsewhere: bool) -> str:
    """A folder as `zoo.load` takes it; elsewhere by its own name."""
    name = folder.resolve().name if elsewhere else str(folder)
    return name if name.startswith(("/", ".", "~")) else f"./{name}"
