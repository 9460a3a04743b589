"""What the server's tests serve: a folder with something to hide, and repositories of every kind."""

import pytest
from hub import TOKEN, ask, commit, create, large, regular, serving

SECRET = "nobody may read this"
WEIGHTS = bytes(range(256)) * 8
TEXT = "".join(f"line {number}\n" for number in range(200))
CARD = "---\ntags: [pruned, {tag}]\nlibrary_name: timm\npipeline_tag: {task}\nlicense: mit\n---\n# {tag}\n"

EVERY_CHANGE = [
    ("POST", "/api/repos/create", {"organization": "org", "name": "new"}),
    ("DELETE", "/api/repos/delete", {"organization": "org", "name": "public"}),
    ("POST", "/api/repos/move", {"fromRepo": "org/public", "toRepo": "org/other"}),
    ("PUT", "/api/models/org/public/settings", {"gated": "auto"}),
    ("POST", "/api/models/org/public/branch/new", {}),
    ("DELETE", "/api/models/org/public/branch/main", None),
    ("POST", "/api/models/org/public/tag/main", {"tag": "x"}),
    ("DELETE", "/api/models/org/public/tag/x", None),
    ("POST", "/api/models/org/public/preupload/main", {"files": []}),
    ("POST", "/api/models/org/public/commit/main", {"key": "header", "value": {"summary": "x"}}),
    ("POST", "/org/public.git/info/lfs/objects/batch", {"operation": "upload", "objects": []}),
    ("POST", "/org/public.git/info/lfs/verify", {"oid": "0" * 64, "size": 1}),
]


def card(tag, task="image-classification"):
    return CARD.replace("{tag}", tag).replace("{task}", task)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the server serves: beside it lies a file that nobody may ever see."""
    root = tmp_path_factory.mktemp("served")
    (root / "secret.txt").write_text(SECRET)
    plain = root / "hub" / "plain" / "model"
    (plain / "sub").mkdir(parents=True)
    (plain / "config.json").write_text("{}")
    (plain / "README.md").write_text(card("plain"))
    (plain / "model.safetensors").write_bytes(WEIGHTS)
    (plain / "sub" / "notes.txt").write_text(TEXT)
    (plain / ".env").write_text(SECRET)
    (plain / "out.txt").symlink_to(root / "secret.txt")
    (plain / "above").symlink_to(root)
    (root / "hub" / "alone").mkdir()
    (root / "hub" / "alone" / "config.json").write_text("{}")
    (root / "hub" / "linked").symlink_to(plain.parent)
    (root / "hub" / "papers" / "thesis").mkdir(parents=True)
    (root / "hub" / "papers" / "thesis" / "secret.txt").write_text(SECRET)
    return root / "hub"


@pytest.fixture(scope="module")
def address(folder):
    """A server with a token, and in it a public, a gated and a private repository of every kind."""
    with serving(folder, token=TOKEN, part=1 << 20, largest=4 << 20) as address:
        for kind in ("model", "dataset"):
            for name in ("public", "gated", "private"):
                full = f"org/{name}"
                assert create(address, full, kind, token=TOKEN).status == 200
                binary = large(address, full, "model.safetensors", WEIGHTS, TOKEN, kind)
                lines = [regular("README.md", card(name)), regular("sub/notes.txt", TEXT), binary]
                assert commit(address, full, *lines, token=TOKEN, kind=kind).status == 200
            for name, setting in (("gated", {"gated": "auto"}), ("private", {"visibility": "private"})):
                assert ask(address, "PUT", f"/api/{kind}s/org/{name}/settings", setting, TOKEN).status == 200
        yield address
