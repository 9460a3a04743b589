"""Clients of the Hub, unmodified and in processes of their own, against the local one.

Run as a script, python tests/test_server_clients.py NAME FOLDER, it is the client: the function of that name, with
nothing but environment variables telling it where the Hub is. It prints what it saw as JSON; the tests look at that.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import TOKEN, ask, commit, content, create, regular, serving

CARD = "---\nlibrary_name: timm\ntags: [pruned]\nlicense: mit\npipeline_tag: image-classification\n---\n# A model\n"


def client(address, name, folder, token=None):
    """Run one of the functions below as a client; returns what it saw."""
    own = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody is there: what would leave this machine fails
        "OMP_NUM_THREADS": "2",
        **({"HF_TOKEN": token} if token else {}),
    }
    command = [sys.executable, __file__, name, str(folder)]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def raised(call, *arguments, **options):
    """What a call raises: the class's name and the status of the answer; None if nothing."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)]
    return None


def bytes_of(folder):
    """The sha256 of every file below a folder."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def model_folder(folder):
    """A repository in Hub layout with a file of each kind."""
    import torch
    from safetensors.torch import save_file

    (folder / "sub" / "é à").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").touch()
    (folder / "sub" / "é à" / "100% #1.txt").write_text("text")
    (folder / "sub" / "large.bin").write_bytes(os.urandom(2_500_000))
    save_file({"w": torch.zeros(7, 3), "n": torch.zeros(2, dtype=torch.int8)}, folder / "model.safetensors")
    return folder


def publishing(folder):
    """Everything that a maker of models does."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi, ModelCard, get_safetensors_metadata

    api, name, source = HfApi(), "org/model", model_folder(folder / "source")
    saw = {"who": api.whoami()["name"], "url": str(api.create_repo(name)), "again": raised(api.create_repo, name)}
    saw["exist_ok"] = str(api.create_repo(name, exist_ok=True))
    first = api.upload_folder(repo_id=name, folder_path=source, commit_message="all")
    saw["unchanged"] = api.upload_folder(repo_id=name, folder_path=source).oid == first.oid
    info = api.model_info(name, files_metadata=True)
    saw["info"] = [info.id, info.author, info.sha == first.oid, info.library_name, info.pipeline_tag, info.tags]
    saw["license"], saw["parameters"] = info.card_data.license, [info.safetensors.parameters, info.safetensors.total]
    saw["large"] = [(each.rfilename, each.size) for each in info.siblings if each.lfs]
    saw["source"] = bytes_of(source)
    saw["snapshot"] = bytes_of(api.snapshot_download(name))
    saw["verified"] = len(api.verify_repo_checksums(name).mismatches), api.verify_repo_checksums(name).checked_count
    saw["header"] = get_safetensors_metadata(name).parameter_count
    saw["card"] = ModelCard.load(name).data.license
    ModelCard(CARD + "more\n").push_to_hub(name)
    saw["bad card"] = raised(
        api.upload_file, path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=name
    )
    api.create_tag(name, tag="v1", revision=first.oid, tag_message="first")
    api.create_branch(name, branch="dev/x", revision="v1")
    saw["same tag"], saw["tag exists"] = (
        raised(api.create_tag, name, tag="v1"),
        api.create_tag(name, tag="v1", exist_ok=True),
    )
    api.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id=name, revision="dev/x")
    refs = api.list_repo_refs(name)
    saw["refs"] = [[each.ref for each in refs.branches], [each.ref for each in refs.tags]]
    saw["exists"] = [api.file_exists(name, "more.txt", revision=at) for at in ("main", "dev/x")]
    copy = [
        CommitOperationCopy("sub/large.bin", "copy.bin"),
        CommitOperationCopy("README.md", "copy.md"),
        CommitOperationAdd("new.txt", b"new"),
    ]
    head = api.create_commit(name, operations=copy, commit_message="copies").oid
    for key, parent in (("stale", first.oid), ("fresh", head)):
        late = [CommitOperationAdd("late.txt", b"late")]
        saw[key] = raised(api.create_commit, name, operations=late, commit_message="late", parent_commit=parent)
    api.delete_file("copy.md", name)
    api.delete_folder("sub", name)
    saw["files"] = sorted(api.list_repo_files(name))
    saw["history"] = [each.title for each in api.list_repo_commits(name)]
    saw["tree"] = sorted(
        type(each).__name__ for each in api.list_repo_tree(name, revision="v1", recursive=True, expand=True)
    )
    saw["paths"] = [each.path for each in api.get_paths_info(name, ["sub", "README.md", "none"], revision="v1")]
    api.delete_branch(name, branch="dev/x")
    api.delete_tag(name, tag="v1")
    saw["gone"] = [api.revision_exists(name, "v1"), api.revision_exists(name, first.oid)]
    return saw


def reading(folder):
    """Errors that a reader meets, and downloads that are cached."""
    from huggingface_hub import HfApi, HfFileSystem, hf_hub_download

    api, name = HfApi(), "org/model"
    saw = {
        "repository": raised(api.model_info, "org/none"),
        "revision": raised(hf_hub_download, name, "new.txt", revision="none"),
        "short": raised(hf_hub_download, name, "new.txt", revision=api.model_info(name).sha[:7]),
        "entry": raised(hf_hub_download, name, "none.txt"),
        "gated": raised(hf_hub_download, "org/gated", "README.md", token=False),
        "gated info": api.model_info("org/gated", token=False).gated,
        "gated owner": Path(hf_hub_download("org/gated", "README.md")).read_text(),
        "private": raised(api.model_info, "org/private", token=False),
        "private owner": api.model_info("org/private").private,
        "write": raised(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id=name, token=False),
        "token": raised(api.model_info, name, token="wrong"),
        "models": [each.id for each in api.list_models(author="org", sort="last_modified")],
        "pruned": [each.id for each in api.list_models(filter=["pruned", "license:mit"], search="mod", full=True)],
        "limited": len(list(api.list_models(limit=2))),
        "datasets": [each.id for each in api.list_datasets()],
    }
    files = HfFileSystem()
    saw["glob"] = sorted(files.glob(f"{name}/*.bin"))
    with files.open(f"{name}/copy.bin", "rb") as file:
        file.seek(1_000_000)
        saw["middle"] = hashlib.sha256(file.read(500_000)).hexdigest()
    api.move_repo("org/private", "other/moved")
    saw["moved"] = [api.repo_exists("org/private"), api.repo_exists("other/moved")]
    api.delete_repo("other/moved")
    saw["deleted"] = [api.repo_exists("other/moved"), raised(api.delete_repo, "other/moved")]
    return saw


def networks(folder):
    """Timm's own way to the Hub and back."""
    import timm
    import torch

    model = timm.create_model("test_resnet", num_classes=7).eval()
    timm.models.push_to_hf_hub(model, "org/test_resnet", model_config={"label_names": list("abcdefg")})
    loaded = timm.create_model("hf-hub:org/test_resnet", pretrained=True).eval()
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        return {
            "equal": torch.equal(model(image), loaded(image)),
            "classes": loaded.num_classes,
            "labels": loaded.pretrained_cfg["label_names"],
        }


def pictures(folder):
    """The datasets library's way to the Hub and back, whole and streaming."""
    import datasets
    import numpy

    images = [numpy.full((8, 8, 3), number, dtype=numpy.uint8) for number in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    made = datasets.Dataset.from_dict({"image": images, "label": [n % 2 for n in range(20)]}, features=features)
    made.push_to_hub("org/pictures", split="train")
    made.select(range(4)).push_to_hub("org/pictures", split="test")
    loaded = datasets.load_dataset("org/pictures")
    streamed = datasets.load_dataset("org/pictures", split="train", streaming=True)
    return {
        "rows": {split: len(rows) for split, rows in loaded.items()},
        "names": loaded["train"].features["label"].names,
        "pixels": [int(numpy.asarray(row["image"])[0, 0, 0]) for row in loaded["train"]],
        "streamed": [[int(numpy.asarray(row["image"])[0, 0, 0]), row["label"]] for row in streamed],
        "missing": raised(datasets.load_dataset, "org/none"),
    }


def patience(folder):
    """An upload and a download through whatever goes wrong in between."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("org/patient")
    api.upload_file(path_or_fileobj=b"\0" * 300_000, path_in_repo="w.bin", repo_id="org/patient")
    return {"bytes": len(Path(api.hf_hub_download("org/patient", "w.bin")).read_bytes())}


def checking(folder):
    """A download whose bytes were altered on the way."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.snapshot_download("org/patient")
    return {"mismatches": [each["path"] for each in api.verify_repo_checksums("org/patient").mismatches]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server with a token that makes its uploads in parts, what a maker saw of it, and the folder of its clients."""
    folder = tmp_path_factory.mktemp("clients")
    with serving(folder / "hub", token=TOKEN, part=1 << 20) as address:
        yield address, client(address, "publishing", folder, TOKEN), folder


def test_huggingface_hub_publishes(served):
    address, saw, folder = served
    source = bytes_of(folder / "source")

    assert saw["who"] == "owner"
    assert saw["url"] == saw["exist_ok"] == f"{address}/org/model"
    assert saw["again"] == ["HfHubHTTPError", 409]
    assert saw["unchanged"] is True
    tags = ["pruned", "timm", "image-classification", "license:mit", "safetensors"]
    assert saw["info"] == ["org/model", "org", True, "timm", "image-classification", tags]
    assert (saw["license"], saw["card"]) == ("mit", "mit")
    assert saw["parameters"] == [{"F32": 21, "I8": 2}, 23]
    assert saw["header"] == {"F32": 21, "I8": 2}
    assert saw["large"] == [
        [path, (folder / "source" / path).stat().st_size] for path in ("model.safetensors", "sub/large.bin")
    ]
    assert saw["snapshot"].pop(".gitattributes")
    assert saw["snapshot"] == saw["source"] == source
    assert saw["verified"] == [0, len(source) + 1]
    assert saw["bad card"] == ["ValueError", None]
    assert saw["same tag"] == ["HfHubHTTPError", 409]
    assert saw["refs"] == [["refs/heads/dev/x", "refs/heads/main"], ["refs/tags/v1"]]
    assert saw["exists"] == [False, True]
    assert (saw["stale"], saw["fresh"]) == (["HfHubHTTPError", 412], None)
    kept = {
        ".gitattributes",
        "README.md",
        "config.json",
        "empty.txt",
        "model.safetensors",
        "copy.bin",
        "new.txt",
        "late.txt",
    }
    assert saw["files"] == sorted(kept)
    assert saw["history"][-2:] == ["all", "initial commit"]
    assert len(saw["history"]) == 7
    assert saw["tree"] == ["RepoFile"] * 7 + ["RepoFolder"] * 2
    assert saw["paths"] == ["sub", "README.md"]
    assert saw["gone"] == [False, True]


def test_huggingface_hub_reads_and_raises_what_it_raises_of_the_hub(served):
    address, _, folder = served
    for name, setting in (("gated", {"gated": "manual"}), ("private", {"visibility": "private"})):
        create(address, f"org/{name}", token=TOKEN)
        commit(address, f"org/{name}", regular("README.md", "# gated"), token=TOKEN)
        assert ask(address, "PUT", f"/api/models/org/{name}/settings", setting, TOKEN).status == 200
    middle = (folder / "source" / "sub" / "large.bin").read_bytes()[1_000_000:1_500_000]
    saw = client(address, "reading", folder, TOKEN)

    assert saw["repository"] == ["RepositoryNotFoundError", 404]
    assert saw["revision"] == saw["short"] == ["RevisionNotFoundError", 404]
    assert saw["entry"] == ["RemoteEntryNotFoundError", 404]
    assert saw["gated"] == ["GatedRepoError", 401]
    assert (saw["gated info"], saw["gated owner"]) == ("manual", "# gated")
    assert saw["private"] == ["RepositoryNotFoundError", 401]
    assert saw["private owner"] is True
    assert saw["write"] == ["HfHubHTTPError", 401]
    assert saw["token"] == ["HfHubHTTPError", 401]
    assert saw["models"][:3] == ["org/private", "org/gated", "org/model"]
    assert (saw["pruned"], saw["limited"]) == (["org/model"], 2)
    assert saw["glob"] == ["org/model/copy.bin"]
    assert saw["middle"] == hashlib.sha256(middle).hexdigest()
    assert (saw["moved"], saw["deleted"]) == ([False, True], [False, ["RepositoryNotFoundError", 404]])


def test_no_client_sends_its_token_to_the_cdn(served):
    address, _, _ = served
    requests = ask(address, "GET", "/-/faults").json()
    sent = {(origin, authorized) for _, _, origin, authorized in requests}

    assert ("cdn", True) not in sent
    assert {("cdn", False), ("api", True)} <= sent
    assert {method for method, _, origin, _ in requests if origin == "cdn"} >= {"GET", "PUT", "POST"}


def test_timm_pushes_a_model_and_creates_it_again_with_the_same_weights(served):
    address, _, folder = served
    saw = client(address, "networks", folder, TOKEN)

    assert saw == {"equal": True, "classes": 7, "labels": list("abcdefg")}
    assert "timm" in ask(address, "GET", "/api/models/org/test_resnet").json()["tags"]
    assert content(address, "org/test_resnet", "config.json").json()["architecture"] == "test_resnet"


def test_datasets_pushes_loads_and_streams(served):
    address, _, folder = served
    saw = client(address, "pictures", folder, TOKEN)

    assert saw["rows"] == {"train": 20, "test": 4}
    assert saw["names"] == ["even", "odd"]
    assert saw["pixels"] == list(range(20))
    assert saw["streamed"] == [[number, number % 2] for number in range(20)]
    assert saw["missing"] == ["DatasetNotFoundError", None]


def test_clients_get_over_what_goes_wrong_and_find_what_was_altered(tmp_path):
    with serving(tmp_path / "hub", complaints=["ConnectionAbortedError: cut"]) as address:
        ask(address, "PUT", "/-/faults", {"fail": [1, "/uploads/"], "cut": 200_000})
        assert client(address, "patience", tmp_path) == {"bytes": 300_000}
        tried = [(method, path.split("/")[1]) for method, path, *_ in ask(address, "GET", "/-/faults").json()]
        assert tried.count(("PUT", "uploads")) == 2
        assert tried.count(("GET", "models")) == 2
        ask(address, "PUT", "/-/faults", {"corrupt": True})
        (tmp_path / "again").mkdir()
        assert client(address, "checking", tmp_path / "again") == {"mismatches": ["w.bin"]}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        seen = globals()[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.write(json.dumps(seen) + "\n")
