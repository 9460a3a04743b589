"""Another model is a row of the catalog: this is the row, and what the commands then do."""

import pytest

import zoo
from zoo.cli import main

FAMILY = """
[family]
architecture = "resnet18"
task = "image-classification"
license = "apache-2.0"
dataset = "digits"
input = [1, 32, 32]
base = "digits_cnn_pruned_25"
[[model]]
name = "mine_pruned_90"
[model.recipe]
method = "prune"
budget = { macs = 0.9 }
options = { images = 16, criterion = "l2", ridge = 1.0 }
data = "digits"
schedule = { epochs = 0 }
"""


def test_a_row_of_the_catalog_is_shown_built_verified_pushed_and_loaded(tmp_path, monkeypatch, capsys):
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "mine.toml").write_text(FAMILY)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        return out

    assert "digits_cnn_pruned_25" in run("show", "mine_pruned_90")
    assert run("build", "mine_pruned_90") == "build/mine_pruned_90\n"
    assert "agrees" in run("verify", "./build/mine_pruned_90")
    run("push", "build/mine_pruned_90", "./models/mine_pruned_90")
    model = zoo.load("./models/mine_pruned_90")
    assert model.zoo_entry.name == "mine_pruned_90"
    assert zoo.measure(model).macs <= 0.9 * zoo.measure(zoo.create("digits_cnn_pruned_25")).macs
