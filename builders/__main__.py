"""`python -m builders NAME`: make one family as its recipes say."""

import importlib

import click

from zoo.errors import ZooError

FAMILIES = ("digits",)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", type=click.Choice(FAMILIES))
def main(name: str) -> None:
    """Build the family NAME; the same command goes on where it was stopped."""
    try:
        importlib.import_module(f"builders.{name}").build(lambda line: click.echo(f"{line} ...", err=True))
    except ZooError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
