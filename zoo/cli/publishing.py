"""`zoo push` and `zoo serve`: models for others."""

from pathlib import Path

import click

from zoo.cli.tables import say


@click.command(epilog="\b\nzoo push build/mine me/digits_vit_half --tag v1")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("to")
@click.option("--private", is_flag=True, help="On the Hub, make it so that only you see it.")
@click.option("--tag", help="On the Hub, name this version, e.g. v1.")
def push(folder: Path, to: str, private: bool, tag: str | None) -> None:
    """Publish the repository FOLDER.

    TO is ORG/NAME on the Hub, or a folder such as ./models/NAME. What is there already is replaced whole or not at
    all; the same folder again changes nothing.
    """
    from zoo.verbs.saving import push

    say(push(folder, to, private=private, tag=tag))


@click.command(epilog="\b\nzoo serve ./hub --port 8080")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free one.")
@click.option("--token", envvar="ZOO_SERVE_TOKEN", help="What clients must present to write. [env: ZOO_SERVE_TOKEN]")
def serve(folder: Path, port: int, token: str | None) -> None:
    """Serve FOLDER as a Hub on this machine, until Ctrl-C.

    Clients find it by HF_ENDPOINT; they need HF_HUB_DISABLE_XET=1.
    """
    from zoo.server import serve

    serve(folder, port=port, token=token, say=_serving)


def _serving(address: str) -> None:
    say(f"{address}  (clients: HF_ENDPOINT={address} HF_HUB_DISABLE_XET=1; Ctrl-C ends it)", err=True)
