"""`zoo verify`: figures measured again."""

import json

import click

from zoo.cli.tables import as_json, figure, table
from zoo.report import Verification


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--data", help="Data set to evaluate on.  [default: the one that the results name]")
@click.option("--images", type=click.IntRange(1), help="Evaluate on at most so many.")
@click.option("--structure", is_flag=True, help="Only params and macs; needs no data.")
@click.option("--revision", help="Of models on the Hub: a commit, tag or branch.")
@as_json
def verify(
    names: tuple[str, ...], data: str | None, images: int | None, structure: bool, revision: str | None, as_json: bool
) -> None:
    """Measure the models NAMES again.

    Each is a name of the list, ORG/NAME on the Hub, or a repository's folder. What is
    measured is compared with what is claimed; the exit code is 1 if a figure differs.
    """
    from zoo.verification import verify

    found = [verify(name, data=data, images=images, structure_only=structure, revision=revision) for name in names]
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=2))
    elif len(found) == 1:
        rows = [
            [row.figure, figure(row.reported), figure(row.measured), figure(row.difference), row.verdict]
            for row in found[0].rows
        ]
        table([found[0].name, "claimed", "measured", "difference", "verdict"], rows)
    else:
        figures = list(dict.fromkeys(row.figure for each in found for row in each.rows))
        table(["name", *figures, "verdict"], [_summary(each, figures) for each in found])
    if not all(each.passed for each in found):
        raise SystemExit(1)


def _summary(found: Verification, figures: list[str]) -> list[str]:
    """One model in one row: what was measured, and what differs from the claim."""
    measured = {row.figure: figure(row.measured) for row in found.rows}
    wrong = [
        f"{row.figure} {row.verdict}, claimed {figure(row.reported)}"
        for row in found.rows
        if row.verdict not in ("agrees", "measured")
    ]
    claimed = any(row.verdict == "agrees" for row in found.rows)
    verdict = "; ".join(wrong) or ("agrees" if claimed else "nothing claimed")
    return [found.name, *(measured.get(figure, "-") for figure in figures), verdict]
