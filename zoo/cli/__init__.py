"""The command line: arguments in, functions called, results printed. Nothing else prints or sets an exit code.

A file for each kind of command: `listing`, `browsing`, `benching`, `picking`, `predicting`, `making`, `building`,
`saving`, `publishing`, `verifying`, `exchanging`, `covering`; what several of them take is `options`, how all of them
print `tables`, how tasks on a cluster fare `clustering`. Of `making` also `checks` (what is wrong can be said early),
`method_help`, and what `sweeping` and `planning` print.
"""

import atexit
import contextlib
import gc
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import click

from zoo.cli import (
    benching,
    browsing,
    building,
    covering,
    exchanging,
    listing,
    making,
    picking,
    predicting,
    publishing,
    saving,
    verifying,
)
from zoo.cli.tables import say
from zoo.errors import ZooError
from zoo.printable import logger
from zoo.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 0, 1 (an error or a figure that differs), 2 (usage) or 130 (Ctrl-C)."""
    log = logger("zoo")
    log.handlers = [_Echo()]
    log.setLevel(logging.INFO)
    atexit.register(gc.freeze)  # else the interpreter goes through all of torch once more before it ends
    if not sys.stderr.isatty():  # elsewhere a bar would run into the line that says what went wrong
        for library in ("HUB", "DATASETS"):
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")
    try:
        with _rarely_collected():
            code = cli.main(args=arguments, prog_name="zoo", standalone_mode=False)
    except click.ClickException as error:
        error.show(said := io.StringIO())
        for line in said.getvalue().splitlines():
            say(line, err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("interrupted: nothing half-written was left; the same command goes on where it stopped", err=True)
        code = 130
    except ZooError as error:
        say(f"error: {error}", err=True)
        code = 1
    except OSError as error:
        say(f"error: {error.filename or 'the disk'}: {error.strerror or error}", err=True)
        code = 1
    sys.exit(code or 0)


@contextlib.contextmanager
def _rarely_collected() -> Iterator[None]:
    """Look for garbage a hundred times less often: importing torch and timm makes half a million objects that stay."""
    first, *others = gc.get_threshold()
    gc.set_threshold(100 * first, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


class _Echo(logging.Handler):
    """What is being tried, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="zoo %(version)s")
def cli() -> None:
    """Compressed vision models: find, load, make, publish, verify."""


for command in (
    listing.list_models,
    listing.show,
    browsing.browse,
    benching.bench,
    picking.pick,
    predicting.predict,
    making.compress,
    building.build,
    saving.save,
    publishing.push,
    exchanging.import_model,
    publishing.serve,
    verifying.verify,
    covering.coverage,
    exchanging.export_model,
    exchanging.convert_model,
):
    cli.add_command(command)
