"""What others wrote reaches terminals, logs and cards as text that can be seen, on one line, and not without end."""

import json
import logging
import re
import shutil
import traceback
import unicodedata

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from msgspec.structs import replace

import zoo
from zoo import catalog, errors
from zoo.catalog.entry import Base, own
from zoo.catalog.report import Report
from zoo.cli import main
from zoo.cli.tables import say, say_json, table
from zoo.errors import RepositoryError, StructureError, ZooError
from zoo.hub.listed import Listed
from zoo.pages.card import render
from zoo.pages.front_matter import eval_results
from zoo.printable import MAX_LINE, MAX_MESSAGE, logger, printable
from zoo.structure.description import Description
from zoo.structure.graph.graph import Graph, Node

UNSEEN = {  # what it is for → it
    "colour": "\x1b[31m",
    "title and links": "\x1b]8;;http://evil\x07",
    "colour of eight bits": "\x9b31m",
    "line up and erased": "\x1b[1A\x1b[2K",
    "begin of the line": "\r",
    "another line": "\n",
    "another line of Unicode's": "\u2028",
    "backspace": "\b\b\b",
    "delete": "\x7f",
    "null": "\0",
    "right to left": "\u202e",
    "isolated": "\u2067",
    "mark": "\u200f",
    "no width": "\u200b",
    "joined": "\u2060",
    "byte order": "\ufeff",
    "a letter that is blank": "\u3164",
    "a variation": "\ufe0f",
    "a tag": "\U000e0041",
    "half a pair": "\ud800",
    "private": "\ue000",
}
HOSTILE = "".join(UNSEEN.values())
TEXT = HOSTILE.replace("\ud800", "")  # as far as JSON's readers take it


def is_harmless(text):
    """Nothing but characters that have a shape and a width, by Unicode's own table, and spaces."""
    return not {unicodedata.category(each) for each in text} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


# Texts.


@pytest.mark.parametrize("what", UNSEEN)
def test_what_is_obeyed_or_unseen_is_written_as_its_escape_or_a_space(what):
    shown = printable(f"a{UNSEEN[what]}b")

    assert is_harmless(shown)
    assert UNSEEN[what] not in shown
    assert re.fullmatch(r"a(\\x|\\u|\\U|[ \[\];:/\w])+b", shown)


@given(st.text(st.characters()), st.integers(20, 400))
def test_any_text_is_harmless_short_and_stays_as_it_is_a_second_time(text, most):
    shown = printable(text, most)

    assert is_harmless(shown)
    assert len(shown) <= most
    assert shown == printable(shown, most)


@pytest.mark.parametrize("text", ["ImageNet, 50.000 images", "größe 貓 🐈 naïve", "a/b-c_d.e+f (100 %) → «x»", ""])
def test_what_can_be_seen_stays(text):
    assert printable(text) == text


def test_a_long_text_keeps_its_beginning_and_its_end():
    shown = printable("found " + "A" * 5_000_000 + ": fetch it again")

    assert len(shown) == MAX_MESSAGE
    assert re.fullmatch("found A+ … A+: fetch it again", shown)


# Errors and logs.


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_error_is_a_short_harmless_line_whatever_is_told_in_it(kind):
    told = (5, HOSTILE * 9999) if kind is errors.StorageError else (HOSTILE * 9999,)
    if issubclass(kind, ZooError):
        assert is_harmless(str(kind(*told)))
        assert len(str(kind(*told))) <= MAX_MESSAGE


@pytest.mark.parametrize("key", [TEXT, HOSTILE])
def test_a_traceback_has_harmless_lines(key, hostile):
    """As Python prints it where nobody catches the error: causes too, of which timm writes one."""
    folder = hostile("config.json", lambda config: config["zoo"]["base"]["args"].update({key: 1}))
    with pytest.raises(ZooError) as raised:
        zoo.load(folder)

    shown = "".join(traceback.format_exception(raised.value))
    assert "The above exception was the direct cause" in shown or key == HOSTILE
    assert all(is_harmless(line) for line in shown.split("\n"))


def test_a_log_has_harmless_lines(caplog):
    with caplog.at_level(logging.INFO):
        logger("zoo.somewhere").info("%s has %d", HOSTILE * 999, 5)

    (record,) = caplog.records
    assert is_harmless(record.getMessage())
    assert len(record.getMessage()) <= MAX_LINE


# The terminal.


def test_tables_have_harmless_cells_and_titles(capsys):
    table([HOSTILE, "[bold]b[/bold]"], [[HOSTILE, "[link=http://evil]x[/link]"], ["A" * 1_000_000, HOSTILE]])
    out = capsys.readouterr().out

    assert all(is_harmless(line) for line in out.split("\n"))
    assert "[bold]b[/bold]" in out
    assert "[link=http://evil]x[/link]" in out
    assert len(out) < 20 * MAX_LINE


def test_json_is_valid_ascii_that_says_the_same(capsys):
    data = {HOSTILE: [HOSTILE, 1, None]}
    say_json({**data, "no number": float("nan"), "too large": float("-inf")})
    out = capsys.readouterr().out

    assert out.isascii()
    assert is_harmless(out.replace("\n", ""))
    strict = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert strict == {**data, "no number": None, "too large": None}


def test_a_line_is_one(capsys):
    say(HOSTILE, err=True)

    assert is_harmless(capsys.readouterr().err.removesuffix("\n"))


@pytest.fixture
def hostile(tmp_path):
    """A function that changes a file of a repository whose own name is as it should be: file, change → folder."""

    def changed(file, change):
        folder = tmp_path / "model"
        shutil.copytree(catalog.EMBEDDED / "digits_cnn_pruned_50", folder, dirs_exist_ok=True)
        said = json.loads((folder / file).read_text())
        change(said)
        (folder / file).write_text(json.dumps(said))
        return folder

    return changed


REPAINTED = "x\x1b[1A\r top1 agrees"
IN_RESULTS = {
    "name": lambda r: r.update(name=HOSTILE),
    "figure": lambda r: r["measured"].update({REPAINTED: 1.0}),
    "figure of markup": lambda r: r["measured"].update({"[link=http://evil]top1": 1.0}),
    "many figures": lambda r: r["measured"].update({f"f{i}": 1.0 for i in range(1000)}),
    "package": lambda r: r["versions"].update({HOSTILE: "1"}),
    "version": lambda r: r["versions"].update(torch=HOSTILE),
    "hardware without end": lambda r: r.update(hardware="A" * 2_000_000),
    "data set": lambda r: r["data"].update(dataset=HOSTILE * 999),
    "split": lambda r: r["data"].update(split=["test"]),
    "images": lambda r: r["data"].update(images="450"),
    "images that are none": lambda r: r["data"].update(images=-1),
    "input": lambda r: r["data"].update(input=[1, 32]),
    "mean": lambda r: r["data"].update(mean="half"),
    "crop": lambda r: r["data"].update(crop_pct=HOSTILE),
    "against": lambda r: r["data"].update(against={}),
    "labels": lambda r: r["data"].update(labels=[TEXT, 5]),
    "half a pair": lambda r: r["data"].update({"\ud800": 1}),
    "a key": lambda r: r.update({HOSTILE: 1}),
}
IN_CONFIG = {
    "name": lambda c: c["zoo"].update(name='a"); import os  # '),
    "name of lines": lambda c: c["zoo"].update(name="a\n```\n"),
    "name that is a path": lambda c: c["zoo"].update(name="../a"),
    "name without end": lambda c: c["zoo"].update(name="a" * 97),
    "version": lambda c: c["zoo"]["versions"].update(zoo=HOSTILE),
    "schema": lambda c: c["zoo"].update(schema=9, versions={"zoo": HOSTILE * 99999}),
    "schema in words": lambda c: c["zoo"].update(schema=HOSTILE * 99999),
    "base": lambda c: c["zoo"]["base"].update(id=HOSTILE),
    "architecture": lambda c: c["zoo"]["base"].update(id=f"timm/{'a' * 999999}"),
    "argument": lambda c: c["zoo"]["base"]["args"].update({HOSTILE: 1}),
    "edit": lambda c: c["zoo"]["plan"].append({"edit": HOSTILE * 999}),
    "module": lambda c: c["zoo"]["plan"].append({"edit": "drop", "paths": {HOSTILE * 999: "identity"}}),
    "licence": lambda c: c["pretrained_cfg"].update(license=["mit"]),
    "licence without end": lambda c: c["pretrained_cfg"].update(license="m" * 9999),
    "no input": lambda c: c["pretrained_cfg"].update(input_size=None),
    "fingerprint": lambda c: c["zoo"]["fingerprint"].update({HOSTILE: HOSTILE}),
}  # fmt: skip
REFUSED = {
    **{f"results, {what}": ("results.json", change) for what, change in IN_RESULTS.items()},
    **{f"config, {what}": ("config.json", change) for what, change in IN_CONFIG.items()},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_isnt_said_as_it_must_be_is_refused_in_a_short_harmless_line(what, hostile, capsys):
    folder = hostile(*REFUSED[what])
    with pytest.raises(SystemExit) as end:
        main(["verify", "--structure", str(folder)])
    out, err = capsys.readouterr()

    assert (end.value.code, out) == (1, "")
    assert is_harmless(err.removesuffix("\n"))
    assert len(err) <= MAX_MESSAGE + len("error: \n")


SHOWN = {
    "data": ("results.json", lambda r: r["data"].update({TEXT: TEXT, "labels": {TEXT: TEXT}})),
    "hardware": ("results.json", lambda r: r.update(hardware=TEXT)),
    "recipe": ("config.json", lambda c: c["zoo"]["recipe"].update(data=TEXT, teachers=[TEXT])),
    "options": ("config.json", lambda c: c["zoo"]["recipe"].update(options={TEXT: [TEXT]}, augment={"x": TEXT})),
    "class names": ("config.json", lambda c: c.update(label_names=[TEXT] * 10)),
    "licence": ("config.json", lambda c: c["pretrained_cfg"].update(license=TEXT, tag=TEXT)),
}


@pytest.mark.parametrize("command", ["show", "show --json", "verify --structure", "verify --structure --json"])
@pytest.mark.parametrize("what", SHOWN)
def test_what_may_be_any_text_is_shown_harmless(what, command, hostile, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), str(hostile(*SHOWN[what]))])
    out, err = capsys.readouterr()

    assert (end.value.code, err) == (0, "")
    assert all(is_harmless(line) for line in out.split("\n"))


TYPED = ["{}", "show {}", "show ./{}", "verify a/{}", "verify --size {} digits_cnn", "list --method {}", "export {}"]
TYPED += ["push {} a/b", "build digits_cnn --data /{}", "import ./{} --out /nowhere", "verify --labels {} digits_cnn"]


@pytest.mark.parametrize("line", TYPED)
def test_what_was_typed_or_is_a_file_s_name_is_told_harmless(line, capsys):
    with pytest.raises(SystemExit) as end:
        main([word.format(TEXT.replace("\0", "")) for word in line.split()])
    out, err = capsys.readouterr()

    assert (end.value.code in (1, 2), out) == (True, "")
    assert all(is_harmless(line) for line in err.split("\n"))


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_list_of_the_hub_is_shown_harmless(how, capsys, monkeypatch):
    listed = [Listed(HOSTILE * 99, HOSTILE, HOSTILE, (HOSTILE,))]
    monkeypatch.setattr("zoo.hub.listed.models_on_hub", lambda organisation: listed)
    with pytest.raises(SystemExit) as end:
        main(["list", "--hub", "me", *how])
    out = capsys.readouterr().out

    assert not end.value.code
    assert all(is_harmless(line) for line in out.split("\n"))
    assert "on the Hub" in out or json.loads(out)["models"][-1]["repo"] == HOSTILE * 99


# Cards.

LOUD = "a\n```\n# b | `c` <img> [d](http://e) ![f](g) &#x202e; &#96; \n---\nlicense: mit\n" + HOSTILE


def test_a_card_shows_any_text_as_text():
    """What a Markdown parser makes of it: no code but our own, no heading, link, image, tag or key that isn't ours."""
    plain = card("plain")
    loud = card(LOUD)

    assert [kinds(text) for text in (plain, loud)] == [kinds(plain)] * 2
    assert [token.content for token in tokens(loud) if token.type == "fence"] == [
        token.content for token in tokens(plain) if token.type == "fence"
    ]
    assert all(is_harmless(line) for line in loud.split("\n"))
    assert ModelCard(loud).data.to_dict().keys() == ModelCard(plain).data.to_dict().keys()


def card(text):
    """The card of a model of which as much as can be is said in these words."""
    graph = Graph(("x",), (Node("act", "relu", ("x",)),), ("act",))
    recipe = {"data": text, "options": {text: [text]}, "teachers": [text], "schedule": {text: text}}
    entry = own("loud", "resnet18", "image-classification", license=text, note=text, source=text)
    data = {"dataset": text, "split": text, "images": 5, "interpolation": text}
    report = Report("loud", {"top1": 0.5}, data, {"torch": "2.9"}, text)
    description = Description("loud", Base("timm/resnet18"), graph=graph, recipe=recipe)
    return render(replace(entry, base=Base("timm/resnet18")), description, report, {"crop_mode": text})


def tokens(text):
    return MarkdownIt().enable("table").parse(ModelCard(text).text)


def kinds(text):
    """What a parser sees, as far as it isn't text, in order."""
    found = []
    for token in tokens(text):
        found += [token.type, *(each.type for each in token.children or ())]
    return [kind for kind in found if kind not in ("text", "softbreak")]


@pytest.mark.parametrize("name", ['a"); import os', "a\n```", "a b", "$(id)", "../a", "-rf", "", 97 * "a", TEXT])
def test_no_model_has_a_name_that_would_be_more_than_a_word_in_code(name):
    with pytest.raises(
        StructureError, match=r"the model's name is .*, expected a name of letters, digits and . _ -, at"
    ):
        Description(name, Base("timm/resnet18"))


def test_no_graph_has_a_base_that_would_be_more_than_a_word_on_its_card():
    graph = Graph(("x",), (Node("act", "relu", ("x",)),), ("act",))
    with pytest.raises(StructureError, match=r"the base's id is '# a `b`', expected an id such as timm/resnet18"):
        Description("a", Base("# a `b`"), graph=graph)


def test_what_is_written_can_be_read(tmp_path):
    """A figure's name that results couldn't be read with isn't written."""
    model = zoo.load("digits_cnn")
    with pytest.raises(RepositoryError, match=r"measured has the key 'top 1', expected a figure's name such as top1"):
        zoo.save(model, tmp_path / "new", report=Report("digits_cnn", {"top 1": 1.0}))
    assert not (tmp_path / "new").exists()


# Anything in the place of what is known.

KNOWN = {"dataset": "digits", "split": "test", "images": 5, "input": [1, 32, 32], "interpolation": "bicubic"}
KNOWN |= {"crop_pct": 0.9, "mean": [0.5], "std": None, "against": "digits_cnn", "left_out": 1, "labels": {"a": 1}}
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
plain |= st.sampled_from([HOSTILE, 10**400, -(10**400), "a/b", "~", "\ud800"])
anything = st.recursive(plain, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3))


@settings(deadline=None, max_examples=60)
@given(st.fixed_dictionaries({}, optional={key: anything | st.just(value) for key, value in KNOWN.items()}), anything)
def test_whatever_results_say_of_their_data_is_refused_or_shown(data, other):
    told = {"schema": 1, "name": "any", "measured": {"top1": 0.5, "params": 5}, "data": {**data, "other": other}}
    try:
        report = Report.from_json(told)
    except RepositoryError:
        return
    description = Description("any", Base("timm/resnet18"))
    entry = own("any", "resnet18", "image-classification", base=Base("timm/resnet18"))
    text = render(entry, description, report, {})

    assert all(is_harmless(line) for line in text.split("\n"))
    assert ModelCard(text).data.pipeline_tag == "image-classification"
    assert eval_results(report, "image-classification").keys() <= {".eval_results/b.yaml"}
