"""Cards are made of what the catalog, the structure and the measurements say, and a stale one is noticed."""

import importlib.util
from pathlib import Path

import pytest

from zoo import catalog
from zoo.pages import widths
from zoo.pages.style import Picture
from zoo.verbs.cards import facts_of

ROOT = Path(__file__).parents[1]
EMBEDDED = sorted(catalog.names("*", status="embedded"))
KEPT = [[("a.conv", 3, 4, "outputs"), ("fc", 10, 10, "outputs")]]


@pytest.fixture(scope="module")
def script():
    """scripts/cards.py as a module."""
    spec = importlib.util.spec_from_file_location("cards_script", ROOT / "scripts" / "cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_card_is_what_its_repository_s_files_say(name):
    folder = catalog.EMBEDDED / name
    facts = facts_of(folder)

    assert facts.card(None) == (folder / "README.md").read_text()
    assert facts.card(f"{name}/") == (ROOT / "model_cards" / f"{name}.md").read_text()


def test_every_card_picture_and_table_is_fresh(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cards.py", "--check"])
    script.main()

    assert capsys.readouterr().out.endswith(" 0 written\n")


@pytest.fixture
def two(script, monkeypatch, tmp_path):
    """A card and a picture, which are to be rendered into a folder of their own."""
    wanted = [
        (tmp_path / "card.md", "# card\n"),
        (tmp_path / "card" / "widths.png", Picture("widths.png", "", KEPT, widths)),
    ]
    for name, value in {"ROOT": tmp_path, "CARDS": tmp_path, "wanted": lambda: wanted}.items():
        monkeypatch.setattr(script, name, value)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["cards.py", *arguments])
        script.main()

    run()
    return tmp_path, run, wanted


def test_what_is_fresh_is_left_alone(two, capsys):
    _, run, _ = two
    capsys.readouterr()
    run()
    run("--check")

    assert capsys.readouterr().out == 2 * "cards: 2 files, 0 written\n"


def test_a_stale_card_is_named_in_a_line_with_the_command(two):
    folder, run, _ = two
    (folder / "card.md").write_text("# another\n")

    with pytest.raises(SystemExit, match=r"^card\.md is stale: scripts/cards$"):
        run("--check")
    assert (folder / "card.md").read_text() == "# another\n"


def test_a_picture_of_other_values_is_stale(two):
    _, run, wanted = two
    wanted[1] = (wanted[1][0], Picture("widths.png", "", [[*KEPT[0], ("b", 1, 2, "rank")]], widths))

    with pytest.raises(SystemExit, match=r"^card/widths\.png is stale: scripts/cards$"):
        run("--check")


def test_a_picture_of_no_card_is_removed(two):
    folder, run, wanted = two
    del wanted[1]

    with pytest.raises(SystemExit, match=r"^card/widths\.png belongs to no card: scripts/cards$"):
        run("--check")
    run()
    assert not (folder / "card" / "widths.png").exists()
