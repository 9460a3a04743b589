"""Render all cards, their pictures and the README's tables out of catalog, structure and results.

python scripts/cards.py [--check]

Measurements are read from model_cards/results, and from there go into the embedded repositories. What is fresh is left
alone; of a picture that is told by what it was drawn from. --check writes nothing and exits with 1 where something is
stale.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from zoo import catalog
from zoo.atomic import writing
from zoo.catalog.entry import Entry
from zoo.catalog.methods import METHODS
from zoo.catalog.report import Report
from zoo.hub.repository import CARD, RESULTS
from zoo.pages import families, family
from zoo.pages.style import DRAWN_FROM, Picture
from zoo.verbs.cards import facts_of

ROOT = Path(__file__).parents[1]
CARDS, README = ROOT / "model_cards", ROOT / "README.md"
Content = str | Picture


def wanted() -> Iterator[tuple[Path, Content]]:
    """Every file that is rendered, and what shall stand in it; a repository's results before its card."""
    for entry in embedded():
        folder, results = catalog.EMBEDDED / entry.name, CARDS / "results" / f"{entry.name}.json"
        if not results.is_file():
            sys.exit(f"{results.relative_to(ROOT)} isn't there: zoo verify {entry.name} --save {results.parent}")
        yield folder / RESULTS, results.read_text()
        facts = facts_of(folder)
        yield folder / CARD, facts.card(None)
        yield CARDS / f"{entry.name}.md", facts.card(f"{entry.name}/")
        for name, picture in facts.pictures.items():
            yield CARDS / entry.name / name, picture
    yield CARDS / "families.png", Picture("families.png", "", [panels()], families)
    yield README, readme(README.read_text())


def embedded() -> list[Entry]:
    """The models of the wheel."""
    return [catalog.info(name) for name in catalog.names("*", status="embedded")]


def panels() -> list[families.Panel]:
    """Families by what their accuracies are of."""
    published = [catalog.info(name) for name in catalog.names("*", status="origin", project="torch-dag")]
    classifiers = [entry for entry in published if entry.task == "image-classification"]
    digits = [entry for entry in embedded() if entry.dataset == "digits"]
    return [
        ("ImageNet-1k, 50,000 images, as their source reports", "top-1", _families(classifiers)),
        ("digits, 450 images", "top-1", _families(digits)),
    ]


def report_of(entry: Entry) -> Report | None:
    """What was measured of a model."""
    found = catalog.results(entry)
    return Report.from_json(found, entry.name) if found else None


def _families(entries: Sequence[Entry]) -> list[tuple[str, list[family.Point]]]:
    first = {entry.family: entry for entry in reversed(entries)}
    every = {name: family.points(entry, report_of(entry)) for name, entry in sorted(first.items())}
    return [(name, [point for point in points if "macs" in point[-1]]) for name, points in every.items()]


def readme(text: str) -> str:
    """The README with its tables of models made anew."""
    head = "| name | params | macs | top-1 | made by |\n|:--|--:|--:|--:|:--|"
    rows = [row(entry, ("top1",)) for entry in embedded() if entry.task == "image-classification"]
    text = between(text, "models", [head, *rows])
    head = "| name | params | macs | mAP50-95 | mAP50 | made by |\n|:--|--:|--:|--:|--:|:--|"
    rows = [row(entry, ("map", "map50")) for entry in embedded() if entry.task == "object-detection"]
    return between(text, "detectors", [head, *rows])


def row(entry: Entry, figures: Sequence[str]) -> str:
    """A model's row in a table."""
    measured, recipe = catalog.results(entry)["measured"], entry.recipe
    costs = [f"{measured[key]:,}" for key in ("params", "macs")]
    shares = [f"{100 * measured[key]:.2f} %" for key in figures]
    made = METHODS[recipe.method].words if recipe.method else f"{recipe.schedule['epochs']} epochs from scratch"
    base = entry.base.id if recipe.method and entry.base else ""
    if recipe.teachers:
        made += ", distilled from " + ", ".join(f"`{teacher}`" for teacher in recipe.teachers)
    elif base:
        made += f", of `{base}`"
    name = f"[`{entry.name}`](model_cards/{entry.name}.md)"
    return f"| {' | '.join([name, *costs, *shares, made])} |"


def between(text: str, name: str, lines: Sequence[str]) -> str:
    """A text with these lines between its marks of such a name."""
    head, _, rest = text.partition(f"<!-- {name}: scripts/cards -->\n")
    _, _, tail = rest.partition(f"<!-- /{name} -->\n")
    return "\n".join([f"{head}<!-- {name}: scripts/cards -->", *lines, f"<!-- /{name} -->\n{tail}"])


def fresh(path: Path, content: Content) -> bool:
    """Whether a file holds what it shall."""
    if not path.is_file():
        return False
    if isinstance(content, str):
        return path.read_text() == content
    with Image.open(path) as image:
        return bool(image.info.get(DRAWN_FROM) == content.drawn_from)


def main() -> None:
    """Write what is stale, or say it."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something is stale")
    check, stale, files = parser.parse_args().check, 0, []
    for path, content in tqdm(wanted(), "cards", unit="file", disable=None):
        files.append(path)
        if fresh(path, content):
            continue
        if check:
            sys.exit(f"{path.relative_to(ROOT)} is stale: scripts/cards")
        path.parent.mkdir(exist_ok=True)
        with writing(path) as out:
            out.write(content.encode() if isinstance(content, str) else content.png())
        stale += 1
    for path in sorted({*CARDS.glob("*/*.png"), *catalog.EMBEDDED.glob("*/*.png")} - {*files}):
        if check:
            sys.exit(f"{path.relative_to(ROOT)} belongs to no card: scripts/cards")
        path.unlink()
    print(f"cards: {len(files)} files, {stale} written")


if __name__ == "__main__":
    main()
