"""Publishing on the Hub: one commit or none, whole or not at all; and what is published is found again."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import yaml
from client import FILES, OTHER, SMALL, command, environment, faults, point, publish, requests, same
from conftest import CNN, disturbed
from hub import ask, commit, content, create, regular, serving
from huggingface_hub import ModelCard, constants
from killing import NAME, attempt, rehearsal

import zoo
from zoo.catalog.entry import Base
from zoo.catalog.report import Report
from zoo.errors import HubError, RepositoryError, WeightsError
from zoo.hub import listed
from zoo.verbs import saving

# huggingface_hub's own way of sending a file, which its newest httpx doesn't like.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    """A server that everyone may write to, as the client's endpoint; nothing is in the cache."""
    with serving(tmp_path / "served") as address:
        point(monkeypatch, address, tmp_path / "cache")
        yield address


@pytest.fixture
def folder(tmp_path):
    """A repository's folder that a test may change."""
    return shutil.copytree(SMALL, tmp_path / "model")


def published(address, token=None):
    """What the server has of the model: path → bytes, without what it adds itself."""
    rows = ask(address, "GET", f"/api/models/{NAME}/tree/main?recursive=true", token=token).json()
    paths = [row["path"] for row in rows if row["type"] == "file" and row["path"] != ".gitattributes"]
    return {path: content(address, NAME, path, token=token).body for path in paths}


def about(address):
    """What the server says of the model."""
    return ask(address, "GET", f"/api/models/{NAME}").json()


def titles(address):
    """Of the model's commits, newest first."""
    return [each["title"] for each in ask(address, "GET", f"/api/models/{NAME}/commits/main").json()]


def tags(address):
    return {tag["name"]: tag["targetCommit"] for tag in ask(address, "GET", f"/api/models/{NAME}/refs").json()["tags"]}


def change(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nanother\n")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# One commit or none.


def test_what_is_pushed_is_what_lies_in_the_folder_in_one_commit_and_loads_bit_for_bit(endpoint, folder):
    page = saving.push(folder, NAME)

    assert page == f"{endpoint}/{NAME}"
    assert published(endpoint) == contents(folder)
    assert titles(endpoint) == ["Publish model", "initial commit"]
    assert same(zoo.load(NAME), folder)


def test_the_same_folder_again_makes_no_commit_and_sends_no_weights(endpoint, folder):
    saving.push(folder, NAME)
    faults(endpoint)
    saving.push(folder, NAME)

    assert len(titles(endpoint)) == 2
    assert [path for method, path in requests(endpoint) if method == "PUT" or "/commit/" in path] == []


def test_a_changed_folder_is_one_commit_more_and_a_file_that_is_gone_is_deleted(endpoint, folder):
    saving.push(SMALL, NAME)
    commit(endpoint, NAME, regular("LICENSE", "theirs"))
    (folder / "results.json").unlink()
    change(folder)
    saving.push(folder, NAME)

    assert titles(endpoint)[:2] == ["Publish model", "t"]
    assert published(endpoint) == {**contents(folder), "LICENSE": b"theirs"}


def test_a_model_is_replaced_whole(endpoint):
    saving.push(OTHER, NAME)
    saving.push(SMALL, NAME)

    assert published(endpoint) == contents(SMALL)


def test_private_makes_it_so_and_refuses_a_repository_that_is_public(endpoint, folder):
    for _ in range(2):
        saving.push(folder, NAME, private=True)
    assert about(endpoint)["private"] is True

    assert ask(endpoint, "PUT", f"/api/models/{NAME}/settings", {"private": False}).status == 200
    change(folder)
    with pytest.raises(HubError, match=f"{NAME} is there already and public: make it private in its settings on"):
        saving.push(folder, NAME, private=True)
    assert published(endpoint) == contents(SMALL)


def test_a_tag_names_the_commit_again_and_again_but_no_other(endpoint, folder):
    for _ in range(2):
        saving.push(folder, NAME, tag="v1")
    first = about(endpoint)["sha"]
    assert tags(endpoint) == {"v1": first}

    change(folder)
    with pytest.raises(HubError) as error:
        saving.push(folder, NAME, tag="v1")
    assert str(error.value) == f"{NAME} has a tag v1 already, at {first[:7]}: choose another, what was pushed stands"
    assert published(endpoint) == contents(folder)
    saving.push(folder, NAME, tag="v2")
    assert tags(endpoint) == {"v1": first, "v2": about(endpoint)["sha"]}


def test_where_the_endpoint_has_no_xet_the_weights_go_over_lfs_and_the_setting_stays(endpoint, folder):
    assert constants.HF_HUB_DISABLE_XET is False
    saving.push(folder, NAME)

    asked = [path for _, path in requests(endpoint)]
    assert f"/api/models/{NAME}/xet-write-token/main" in asked
    assert any(path.startswith("/uploads/") for path in asked)
    assert constants.HF_HUB_DISABLE_XET is False
    faults(endpoint, fail=[9, "/commit/"])
    change(folder)
    with pytest.raises(HubError):
        saving.push(folder, NAME)
    assert constants.HF_HUB_DISABLE_XET is False


# What is refused.


def altered(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"\x7f")


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (altered, WeightsError, "model.safetensors has sha256"),
        (lambda folder: (folder / "config.json").unlink(), RepositoryError, "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), RepositoryError, "has no model.safetensors"),
        (lambda folder: (folder / "results.json").write_text("{}"), RepositoryError, "results.json: missing 'name'"),
        (lambda folder: (folder / "results.json").write_text("{"), RepositoryError, "results.json isn't JSON"),
        (
            lambda folder: ((folder / "README.md").unlink(), (folder / "README.md").symlink_to("/etc/hostname")),
            RepositoryError,
            "README.md is a link, expected a file",
        ),
        (
            lambda folder: (folder.parent / "org" / "model").mkdir(parents=True),
            RepositoryError,
            "for the folder say ./org",
        ),
    ],
)
def test_a_folder_that_cannot_be_published_is_refused_before_anything_is_asked(
    endpoint, folder, tmp_path, monkeypatch, damage, kind, words
):
    monkeypatch.chdir(tmp_path)
    damage(folder)
    with pytest.raises(kind, match=words):
        saving.push(folder, NAME)

    assert requests(endpoint) == []


def test_a_card_whose_front_matter_cannot_be_read_is_said(endpoint, folder):
    (folder / "README.md").write_text("---\ntags: [\n---\n")
    with pytest.raises(HubError, match=f"{endpoint} refuses {NAME}: Invalid metadata in README.md") as error:
        saving.push(folder, NAME)

    assert "\n" not in str(error.value)
    assert published(endpoint) == {}


def test_the_servers_full_disk_is_said(tmp_path, monkeypatch):
    with serving(tmp_path / "served", faults={"full": 100_000}) as address:
        create(address, "org/model")
        point(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(HubError, match=r"answers 507 for org/model .*: try again later"):
            saving.push(SMALL, "org/model")

        assert published(address) == {}


def test_pushes_killed_at_any_moment_and_servers_at_any_step_leave_the_old_state_or_the_new(tmp_path):
    before, cache = tmp_path / "before", tmp_path / "cache"
    with serving(before) as address:
        publish(address, "org/model", OTHER)
    states, seconds = rehearsal(before, SMALL, tmp_path / "rehearsal", cache)
    moments = [seconds * (n + random.random()) / 5 for n in range(5)]  # noqa: S311
    found = [attempt(before, SMALL, tmp_path / "at", states, cache, after=moment) for moment in moments]
    killed = [attempt(before, SMALL, tmp_path / "at", states, cache, kill=step) for step in range(2, 50, 15)]

    assert found[0] == ("old", "killed")
    assert killed[0] == ("old", "killed")
    assert killed[-1] == ("new", "ended")


# The card.


def test_the_front_matter_on_the_hub_tells_base_relation_tags_and_accuracy(endpoint, tmp_path):
    base = Base("timm/resnet18.a1_in1k", CNN.args)
    model = disturbed(base, 32)
    data = {"dataset": "uoft-cs/cifar10", "split": "test", "images": 100}
    report = Report("small", {"params": 5, "top1": 0.75}, data)
    saving.push(saving.save(model, tmp_path / "small", base=base, report=report), NAME)
    card = ModelCard.load(NAME).data

    assert card.library_name == "compressed-zoo"
    assert (card.base_model, card.base_model_relation) == ("timm/resnet18.a1_in1k", "finetune")
    assert "compressed-zoo" in card.tags
    (result,) = card.eval_results
    assert (result.dataset_type, result.dataset_split) == ("uoft-cs/cifar10", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    (entry,) = yaml.safe_load(published(endpoint)[".eval_results/cifar10.yaml"])
    assert (entry["dataset"]["id"], entry["value"]) == ("uoft-cs/cifar10", 0.75)


def test_a_push_takes_pictures_along_and_leaves_nothing_of_an_earlier_one_that_is_stale(endpoint, tmp_path):
    base = Base("timm/resnet18.a1_in1k", CNN.args)
    for data in ("uoft-cs/cifar10", "uoft-cs/cifar100"):
        where = {"dataset": data, "split": "test", "images": 100}
        report = Report("small", {"params": 5, "top1": 0.75}, where)
        folder = saving.save(disturbed(base, 32), tmp_path / "small", base=base, report=report)
        if data.endswith("cifar10"):
            (folder / "widths.png").write_bytes(b"drawn")
            (folder / "model.onnx").write_bytes(b"exported")
        saving.push(folder, NAME)
        if data.endswith("cifar10"):
            assert {"widths.png", "model.onnx", ".eval_results/cifar10.yaml"} <= published(endpoint).keys()

    assert published(endpoint).keys() == {*FILES, ".eval_results/cifar100.yaml"}
    assert [*titles(endpoint)] == ["Publish small", "Publish small", "initial commit"]


# Listing.


def test_only_tagged_repositories_are_listed_with_what_is_known_of_them(tmp_path, monkeypatch, capsys):
    with serving(tmp_path / "served") as address:
        point(monkeypatch, address, tmp_path / "cache")
        assert list(listed.models_on_hub()) == []
        for name in ("org/first", "org/second", "other/third"):
            saving.push(OTHER if name == "org/first" else SMALL, name)
        publish(address, "org/foreign", SMALL, ["config.json"])
        first = ask(address, "GET", "/api/models/org/first").json()["sha"]

        found = {each.repo: each for each in listed.models_on_hub()}
        assert sorted(found) == ["org/first", "org/second", "other/third"]
        assert found["org/first"].commit == first
        assert found["org/first"].methods == ("pruned", "channel-pruning", "distillation")
        assert [each.repo for each in listed.models_on_hub("other")] == ["other/third"]
        assert list(listed.models_on_hub("nobody")) == []

        code, out, _ = command(capsys, "list", "--hub", "other", "--json")
        rows = json.loads(out)["models"]
        assert code == 0
        assert [row["repo"] for row in rows] == ["other/third"]  # that organisation's, and nothing else
        claimed = json.loads((SMALL / "results.json").read_text())["measured"]
        assert rows[0]["measured"] == claimed
        _, out, _ = command(capsys, "list", "--hub", "other")
        assert f"{100 * claimed['top1']:.2f}%" in out
        assert "claimed" in out
        assert "1 model: 1 on the Hub" in out

        def named(*options):
            _, out, _ = command(capsys, "list", "--hub", "org", "--json", *options)
            return [row["repo"].removeprefix("org/") for row in json.loads(out)["models"]]

        pushed = [("first", OTHER), ("second", SMALL)]
        macs = {name: json.loads((folder / "results.json").read_text())["measured"]["macs"] for name, folder in pushed}
        smaller = min(macs, key=macs.get)
        assert named() == ["first", "second"]
        assert named("--sort", "macs") == sorted(macs, key=macs.get)
        assert named("--max-macs", str(macs[smaller])) == [smaller]
        assert named("--max-params", "1") == named("--status", "embedded") == named("--method", "low_rank") == []
        assert named("--method", "prune", "--task", "image-classification") == ["first", "second"]
        assert named("--task", "object-detection") == []
        code, out, _ = command(capsys, "list", "first", "--hub")
        assert [line.split()[0] for line in out.splitlines() if "on the Hub at" in line] == ["org/first"]
        assert f"on the Hub at {first[:7]}" in out
        assert "1 model: 1 on the Hub" in out


def test_a_listing_goes_through_all_pages(tmp_path, monkeypatch):
    for number in range(1003):
        (tmp_path / "served" / "org" / f"m{number}").mkdir(parents=True)
        (tmp_path / "served" / "org" / f"m{number}" / "config.json").write_text("{}")
        text = f"---\ntags: [{'compressed-zoo' if number != 7 else 'another'}, pruned]\n---\n"
        (tmp_path / "served" / "org" / f"m{number}" / "README.md").write_text(text)
    with serving(tmp_path / "served") as address:
        point(monkeypatch, address, tmp_path / "cache")
        found = [each.repo for each in listed.models_on_hub("org")]

        assert sorted(found) == sorted(f"org/m{number}" for number in range(1003) if number != 7)
        assert [path for _, path in requests(address)].count("/api/models") == 3  # one that asks whether it answers


def test_the_command_line_publishes_and_lists_with_the_endpoint_of_the_environment(endpoint, tmp_path):
    def run(*arguments):
        whole = [sys.executable, "-m", "zoo", *map(str, arguments)]
        return subprocess.run(whole, env=environment(endpoint, tmp_path), capture_output=True, text=True)

    done = run("push", SMALL, NAME, "--private", "--tag", "v1")
    assert (done.returncode, done.stdout) == (0, f"{endpoint}/{NAME}\n"), done.stderr
    assert done.stderr == ""
    assert published(endpoint) == contents(SMALL)
    assert about(endpoint)["private"] is True
    assert list(tags(endpoint)) == ["v1"]
    found = run("list", "--hub", "org", "--json")
    assert found.returncode == 0, found.stderr
    assert [row["repo"] for row in json.loads(found.stdout)["models"] if "repo" in row] == [NAME]
