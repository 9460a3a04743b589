"""`scripts/first_contact` and `scripts/import_all` against a local Hub that serves four families under their names."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from client import dead, environment, faults, point, requests
from hub import ask, commit, create, large, regular, serving
from PIL import Image

from zoo.catalog import reader
from zoo.files import sha256

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "data" / "torch_dag"
CATALOG = ROOT / "zoo" / "catalog" / "torch-dag"
NAMES = {  # what the catalog names → the small checkpoint of that family that stands in for it
    "convnextv2_nano_pruned_54": "convnextv2_atto_tiny_pruned",
    "deit3_small_patch16_224_pruned_66": "deit3_tiny_pruned",
    "poolformerv2_s24_pruned_52": "poolformerv2_tiny_pruned",
    "beit_base_patch16_224_pruned_65": "beit_tiny_pruned",
}


def origins(folder):
    """Every model's origin as the files have it: name → its table."""
    tables = [tomllib.loads(path.read_text()) for path in sorted(folder.rglob("*.toml"))]
    return {model["name"]: model["origin"] for table in tables for model in table["model"] if "origin" in model}


def repository(name):
    return origins(CATALOG)[name]["repo"]


def put(address, repo, folder, **replaced):
    """Publish a checkpoint: its commit."""
    create(address, repo)
    weights = replaced.get("modules", (folder / "modules.pt").read_bytes())
    lines = [regular("config.dict.json", (folder / "config.dict.json").read_text())]
    return commit(address, repo, *lines, large(address, repo, "modules.pt", weights)).json()["commitOid"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A Hub with the four; (address, name → commit)."""
    with serving(tmp_path_factory.mktemp("served")) as address:
        yield address, {name: put(address, repository(name), FOLDER / tiny) for name, tiny in NAMES.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the catalog, for the inputs that the small checkpoints take and without what is claimed of theirs."""
    copy = tmp_path / "catalog" / "torch-dag"
    shutil.copytree(CATALOG, copy)
    for path in copy.glob("*.toml"):
        text = re.sub(r', (commit|sha256) = "\w+"', "", path.read_text())
        if any(f'"{name}"' in text for name in NAMES):
            text = re.sub(r"^reported .*\n", "", text.replace("[3, 224, 224]", "[3, 64, 64]"), flags=re.MULTILINE)
        path.write_text(text)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    return copy


@pytest.fixture
def contact(served, folder, tmp_path, monkeypatch, capsys):
    """A function that runs the script as a process of its own would: (exit code, what it printed)."""
    point(monkeypatch, served[0], tmp_path / "cache")
    specification = importlib.util.spec_from_file_location("first_contact", ROOT / "scripts" / "first_contact.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run(*arguments):
        reader.read_catalog.cache_clear()
        code = script.main(["--results", str(tmp_path / "results"), *arguments])
        return code, capsys.readouterr().out

    yield run
    reader.read_catalog.cache_clear()


def snapshot(*folders):
    """Every file's content and time of change."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_what_is_missing_is_pinned_and_nothing_else_is_touched(contact, served, folder, tmp_path):
    before = {path: path.read_text().splitlines() for path in folder.glob("*.toml")}
    code, said = contact(*NAMES)

    assert (code, said.splitlines()[-1]) == (0, "4 of 4 models agree; failed: none")
    found = origins(folder)
    for name, tiny in NAMES.items():
        expected = {"commit": served[1][name], "sha256": sha256(FOLDER / tiny / "modules.pt")}
        assert found[name] == {"repo": repository(name), "format": "torch-dag", **expected}
    changed = []
    for path, lines in before.items():
        after = path.read_text().splitlines()
        assert len(after) == len(lines)
        changed += [new for old, new in zip(lines, after, strict=True) if old != new]
    assert len(changed) == 4
    assert all(re.fullmatch(r'origin   = \{ .*, commit = "\w{40}", sha256 = "\w{64}" \}', line) for line in changed)
    measured = {path.stem: json.loads(path.read_text())["measured"] for path in (tmp_path / "results").iterdir()}
    assert set(measured) == set(NAMES)
    assert measured["beit_base_patch16_224_pruned_65"]["params"] == 77_329


def test_a_second_run_changes_nothing_and_asks_for_nothing(contact, served, folder, tmp_path):
    contact(*NAMES)
    before = snapshot(folder, tmp_path / "results")
    faults(served[0])
    code, _ = contact()  # of all, those that aren't served are asked for

    asked = {path for _, path in requests(served[0])}
    assert code == 1
    assert snapshot(folder, tmp_path / "results") == before
    assert not [path for path in asked if any(repository(name) in path for name in NAMES)]


def test_those_that_fail_do_not_stop_the_others(contact, folder, tmp_path):
    code, said = contact()

    assert code == 1
    assert re.search(rf"^4 of {len(origins(CATALOG))} models agree; failed: ", said, re.MULTILINE)
    assert {path.stem for path in (tmp_path / "results").iterdir()} == set(NAMES)
    assert {name for name, origin in origins(folder).items() if "commit" in origin} == set(NAMES)


POOLFORMER = "poolformerv2_s24_pruned_52"


def pinned(folder, text):
    """Write what the entry already knows, between what else stands on the line; returns the file."""
    path = folder / "poolformerv2_s24.toml"
    line = f'origin   = {{ repo = "{repository(POOLFORMER)}", format = "torch-dag"'
    assert path.read_text().count(line + " }") == 1
    path.write_text(path.read_text().replace(line + " }", f"{line}{text} }} # as on its page"))
    return path


def test_a_shortened_commit_is_written_in_full_and_the_comment_stays(contact, served, folder):
    path = pinned(folder, f', commit = "{served[1][POOLFORMER][:7]}"')
    code, _ = contact(POOLFORMER)

    digest = sha256(FOLDER / NAMES[POOLFORMER] / "modules.pt")
    assert code == 0
    full = f'commit = "{served[1][POOLFORMER]}", sha256 = "{digest}" }} # as on its page\n'
    assert full in path.read_text()


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (f', sha256 = "{"0" * 64}"', "isn't the file that the catalog knows: sha256 000000000000"),
        (f', commit = "{"0" * 40}"', "0000000"),
        (', commit = "0000000"', "0000000"),
    ],
)
def test_what_is_known_and_differs_is_a_failure_and_stays(contact, folder, tmp_path, known, reason):
    path = pinned(folder, known)
    before = snapshot(folder)
    code, said = contact(POOLFORMER)

    assert (code, snapshot(folder)) == (1, before)
    assert reason in said
    assert known in path.read_text()
    assert not (tmp_path / "results").exists()


def test_files_that_were_replaced_after_they_were_pinned_are_a_failure(contact, served, folder, tmp_path, monkeypatch):
    """The same commit with other weights, as only a dishonest endpoint could serve it."""
    contact(POOLFORMER)
    before = snapshot(folder, tmp_path / "results")
    [found] = (tmp_path / "cache" / "hub").glob("models--*poolformer*/snapshots/*/modules.pt")
    found.unlink()
    found.write_bytes((FOLDER / NAMES[POOLFORMER] / "modules.pt").read_bytes()[:-1] + b"x")
    point(monkeypatch, dead(), tmp_path / "cache")
    code, said = contact(POOLFORMER)

    assert (code, snapshot(folder, tmp_path / "results")) == (1, before)
    assert "isn't the file that the catalog knows" in said


def test_an_origin_that_is_not_on_one_line_is_left_alone_and_said(contact, folder):
    path = folder / "poolformerv2_s24.toml"
    line = f'origin   = {{ repo = "{repository(POOLFORMER)}", format = "torch-dag" }}'
    table = f'\n[model.origin]\nrepo = "{repository(POOLFORMER)}"\nformat = "torch-dag"\n'
    path.write_text(path.read_text().replace(line, "") + table)
    before = snapshot(folder)
    code, said = contact(POOLFORMER)

    assert (code, snapshot(folder)) == (1, before)
    assert "isn't one line of its own" in said


def test_a_value_that_is_quoted_otherwise_is_left_alone_and_said(contact, served, folder):
    pinned(folder, f", commit = '{served[1][POOLFORMER][:7]}'")
    before = snapshot(folder)
    code, said = contact(POOLFORMER)

    assert (code, snapshot(folder)) == (1, before)
    assert "isn't one line of its own" in said


@pytest.fixture
def images(tmp_path):
    """Two images for each of ten classes."""
    for label in range(10):
        for number in range(2):
            path = tmp_path / "images" / "validation" / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (25 * label, 120 * number, 90)).save(path)
    return tmp_path / "images"


def test_images_are_evaluated_once_and_compared_with_the_claim(contact, folder, images, tmp_path):
    arguments = ("--data", str(images), "--images", "15")
    first, _ = contact(*arguments, POOLFORMER)
    before = (tmp_path / "results" / f"{POOLFORMER}.json").read_text()
    path = folder / "poolformerv2_s24.toml"
    path.write_text(path.read_text() + "reported = [{ top1 = 0.99, input = 64 }]\n")
    again, said = contact(*arguments)

    assert first == 0
    assert (json.loads(before)["data"]["images"], json.loads(before)["measured"]["top1"] < 0.9) == (15, True)
    assert (again, (tmp_path / "results" / f"{POOLFORMER}.json").read_text()) == (1, before)
    assert re.search(r"top1: 0\.\d+ \(reported 0\.99\), differs\n  failed: differs from what is claimed", said)


def commits(address, repo):
    """The titles of a repository's commits; none where there is no such repository."""
    answer = ask(address, "GET", f"/api/models/{repo}/commits/main")
    return [each["title"] for each in answer.json()] if answer.status == 200 else []


def test_an_import_of_all_that_was_killed_goes_on_where_it_was(served, folder, tmp_path):
    """Killed when the first was pushed: the second run neither converts nor publishes it again."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "import_all", tmp_path / "scripts")
    (tmp_path / "scripts" / "environment").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    first, second = "poolformerv2_s24_pruned_52", "convnextv2_nano_pruned_54"
    command = ["bash", tmp_path / "scripts" / "import_all", "--push", "me", first, second]
    options = {"env": environment(served[0], tmp_path / "cache"), "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        while not commits(served[0], f"me/{first}")[1:]:  # the first commit makes the repository
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    before = snapshot(tmp_path / "build" / "imported" / first)
    assert commits(served[0], f"me/{second}") == []
    ended = subprocess.run(command, check=False, **options)

    assert ended.returncode == 0, ended.stderr
    for name in (first, second):
        assert commits(served[0], f"me/{name}").count(f"Publish {name}") == 1
    assert snapshot(tmp_path / "build" / "imported" / first) == before
