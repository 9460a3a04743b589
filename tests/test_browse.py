"""`zoo browse`: its rows are the catalog's, its folder is whole, and it is served and published as it is written."""

import http.client
import json
import shutil
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from client import point
from hub import ask, commit, content, create, regular, serving

import zoo
from zoo import catalog
from zoo.cli import cli
from zoo.errors import RepositoryError, ZooError
from zoo.pages.browse import layers, rows, site
from zoo.verbs.changing import changes

MODEL = "digits_cnn_pruned_25"


def browse(*arguments):
    """The command's outcome."""
    return CliRunner().invoke(cli, ["browse", *map(str, arguments)])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A folder with the page of the catalog."""
    folder = tmp_path_factory.mktemp("browse") / "page"
    assert browse("--out", folder).output == f"{folder / site.PAGE}\n"
    return folder


def said(folder):
    """The rows that a page holds."""
    text = (folder / site.PAGE).read_text()
    data = text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return {row["id"]: row for row in json.loads(data)["rows"]}


def test_every_entry_is_a_row_with_the_figures_of_the_listing(page):
    found = said(page)

    assert list(found) == catalog.names(all=True)
    for name, row in found.items():
        entry, size = catalog.info(name), catalog.size(catalog.info(name))
        assert (row.get("params"), row.get("macs")) == (size.params, size.macs)
        assert row.get("accuracy") == next((v for v in (size.top1, size.map, size.map50) if v is not None), None)
        assert tuple(row.get("reported", ())) == size.reported
        assert ("load" in row) != ("obstacle" in row)
        assert row.get("license") == entry.license
        assert ("card" in row) == (entry.status == "embedded")


@pytest.mark.parametrize("name", ["digits_cnn_pruned_25", "digits_vit_lowrank_50"])
def test_what_is_left_of_each_layer_is_what_the_built_models_have(name):
    base = catalog.info(name).base.id
    built = {layer.path: layer for layer in changes(zoo.create(base), zoo.create(name)).layers}
    found = layers.left(catalog.EMBEDDED / name, catalog.EMBEDDED / base)

    assert len(found) > 10
    for layer in found:
        same = built[layer.path]
        assert (layer.outputs, layer.rank) == (same.outputs, same.rank)
        biases = (same.params[0] - layer.params[0], same.params[1] - layer.params[1])  # which have no heads' shape
        assert 0 <= biases[0] <= layer.outputs[0]
        assert 0 <= biases[1] <= layer.outputs[1] + (layer.rank or 0)


@pytest.mark.parametrize(
    "head", [b"", b"\xff" * 8, (9).to_bytes(8, "little") + b'{"a": [1]', (9).to_bytes(8, "little") + b"not json!"]
)
def test_weights_that_cant_be_read_have_no_layers(tmp_path, head):
    (tmp_path / "model.safetensors").write_bytes(head)

    assert layers.left(tmp_path, catalog.EMBEDDED / "digits_cnn") == []


def test_a_repository_of_ones_own_stands_beside_the_catalog(tmp_path):
    own = shutil.copytree(catalog.EMBEDDED / MODEL, tmp_path / "mine")
    outcome = browse(own, "--out", tmp_path / "page")
    row, entry = said(tmp_path / "page")["./mine"], said(tmp_path / "page")[MODEL]

    assert outcome.exit_code == 0, outcome.output
    assert (row["status"], row["load"]) == ("folder", "zoo.load('./mine')")
    assert str(tmp_path) not in (tmp_path / "page" / site.PAGE).read_text()  # which is nobody else's business
    assert [row[key] for key in ("params", "macs", "accuracy", "license", "method", "card")] == [
        entry[key] for key in ("params", "macs", "accuracy", "license", "method", "card")
    ]


def test_a_users_own_catalog_is_shown_too(tmp_path, monkeypatch):
    (tmp_path / "catalog" / "mine").mkdir(parents=True)
    entry = (
        '[[model]]\nname = "own"\narchitecture = "resnet18"\nbase = "timm/resnet18"\ntask = "image-classification"\n'
    )
    (tmp_path / "catalog" / "mine" / "own.toml").write_text(entry)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))

    assert browse("--out", tmp_path / "page").exit_code == 0
    assert said(tmp_path / "page").keys() == {"own", *catalog.names(all=True)}


def test_it_waits_for_neither_torch_nor_the_hub(tmp_path):
    code = (
        "import sys; from zoo.cli import cli; cli(sys.argv[1:], standalone_mode=False);"
        "print(sorted({'torch', 'timm', 'huggingface_hub'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "browse", "--out", str(tmp_path / "page")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert printed.splitlines()[-1] == "[]"


def test_a_page_takes_the_place_of_a_page_and_of_nothing_else(page, tmp_path):
    shutil.copytree(page, tmp_path / "page")
    (tmp_path / "page" / site.PAGE).write_text("old")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years")

    assert browse("--out", tmp_path / "page").exit_code == 0
    assert len(said(tmp_path / "page")) == len(said(page))
    refused = browse("--out", tmp_path / "other")
    assert str(refused.exception) == (
        f"{tmp_path / 'other'} isn't a page of zoo browse (found thesis.tex): choose another folder"
    )
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([str(catalog.EMBEDDED)], RepositoryError, "has no config.json: not a model repository"),
        ([catalog.EMBEDDED / MODEL, f"{catalog.EMBEDDED}/../embedded/{MODEL}"], ZooError, "is named 2 times"),
        (["--push", "nowhere"], RepositoryError, "nowhere isn't ORG/SPACE on the Hub"),
        (["--latency", catalog.EMBEDDED / MODEL / "config.json"], RepositoryError, "of zoo bench --json"),
    ],
    ids=["no repository", "twice", "no space", "no bench"],
)
def test_what_cant_be_shown_is_said_in_one_line(tmp_path, arguments, error, message):
    outcome = browse("--out", tmp_path / "page", *arguments)

    assert isinstance(outcome.exception, error)
    assert message in str(outcome.exception)


def test_latencies_are_those_of_one_image():
    bench = {"rows": [{"name": "a", "ms": 8.0, "batch": 16}, {"name": "a", "ms": 1.0, "batch": 1}]}
    bench["rows"] += [{"name": "b (base)", "ms": 8.0, "batch": 16}]

    assert rows.latencies(bench, "bench.json") == {"a": 1.0, "b": 0.5}


def test_it_is_served_to_this_machine_by_its_own_name_until_ctrl_c(page):
    command = [sys.executable, "-m", "zoo", "browse", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        address = process.stdout.readline().split()[0].removeprefix("http://")
        answers = {}
        for path, host in (
            ("/", address),
            ("/vendor/tabulator.min.js", address),
            ("/x", address),
            ("/", "evil.org:80"),
        ):
            connection = http.client.HTTPConnection(address)
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            answers[path, host] = (answer.status, answer.read())
            connection.close()
        process.send_signal(signal.SIGINT)

        assert process.wait() == 0
    assert answers["/", address] == (200, (page / site.PAGE).read_bytes())
    assert answers["/vendor/tabulator.min.js", address][1] == (page / "vendor" / "tabulator.min.js").read_bytes()
    assert [answers[key][0] for key in (("/x", address), ("/", "evil.org:80"))] == [404, 404]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own way of sending a file
def test_it_is_published_as_a_static_space_in_one_commit(page, tmp_path, monkeypatch):
    with serving(tmp_path / "served") as address:
        point(monkeypatch, address, tmp_path / "cache")
        outcomes = [browse("--push", "me/models") for _ in range(2)]
        tree = ask(address, "GET", "/api/spaces/me/models/tree/main?recursive=true").json()
        commits = ask(address, "GET", "/api/spaces/me/models/commits/main").json()
        paths = {each["path"] for each in tree if each["type"] == "file"} - {".gitattributes"}
        published = {path: content(address, "spaces/me/models", path).body for path in paths}

    assert [outcome.output for outcome in outcomes] == [f"{address}/spaces/me/models\n"] * 2
    assert "sdk: static" in published.pop("README.md").decode()
    assert published == {
        path.relative_to(page).as_posix(): path.read_bytes() for path in page.rglob("*") if path.is_file()
    }
    assert [each["title"] for each in commits][:1] == ["Publish Compressed vision models"]
    assert len(commits) <= 2  # the second made none


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_page_takes_a_new_spaces_place_whole_and_that_of_no_other_space(page, tmp_path, monkeypatch):
    with serving(tmp_path / "served") as address:
        point(monkeypatch, address, tmp_path / "cache")
        for name, file in (("me/new", "style.css"), ("me/demo", "app.py")):
            create(address, name, "space", sdk="static")
            commit(address, name, regular("README.md", "theirs"), regular(file, "theirs"), kind="space")
        made, refused = browse("--push", "me/new"), browse("--push", "me/demo")
        paths = {each["path"] for each in ask(address, "GET", "/api/spaces/me/new/tree/main?recursive=true").json()}
        kept = {file: content(address, "spaces/me/demo", file).body for file in ("README.md", "app.py")}

    assert made.exit_code == 0, made.output
    assert not paths & {"style.css"}
    assert site.PAGE in paths
    assert str(refused.exception) == "me/demo isn't a page of zoo browse (found app.py): choose another Space"
    assert set(kept.values()) == {b"theirs"}
