"""What a base is good for is told before it is compressed, where a wrong order of classes would be seen."""

import pytest
import timm
import torch
from msgspec.structs import replace

import zoo
from zoo.catalog.entry import Base, Budget, Entry, Recipe, own
from zoo.tasks.datasets import dataset
from zoo.verbs import beginning
from zoo.verbs.building import make

NETWORK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "in_chans": 1, "num_classes": 10}
SEEN = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}


@pytest.fixture
def entry(tmp_path):
    """A recipe for a network that finds two classes of three, as it hardly sees more than noise, and its model."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", **NETWORK).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, **SEEN}
    zoo.save(model, tmp_path / "dense", base=zoo.Base("timm/resnet18", NETWORK))
    recipe = Recipe("prune", Budget(0.6), {"images": 32}, "digits", schedule={"epochs": 0})
    more = {"base": Base(str(tmp_path / "dense")), "input": (1, 16, 16), "recipe": recipe}
    return Entry("small_60", "own", "small", "resnet18", "image-classification", "recipe", **more), model


def share_right(model, images=None):
    """How many of the test images, or of others, a model is right for, counted one by one."""
    transform, images = zoo.transform(model), images or dataset("digits", "test")
    with torch.inference_mode():
        right = [int(model(transform(row["image"])[None]).argmax()) == row["label"] for row in images]
    return sum(right) / len(right)


def test_the_base_is_evaluated_as_a_step_of_its_own_and_once_whatever_stops_the_build(entry, tmp_path, monkeypatch):
    recipe, model = entry
    said, stopped = [], RuntimeError("too early")

    def compress(*given, **how):
        raise stopped

    monkeypatch.setattr(beginning, "compress", compress)
    with pytest.raises(RuntimeError, match="too early"):
        make(recipe, tmp_path / "out", say=said.append)
    monkeypatch.undo()
    monkeypatch.setattr(beginning, "report_of", lambda *given, **how: pytest.fail("measured twice"))
    make(recipe, tmp_path / "out", say=said.append)

    top1 = share_right(model)
    assert said[:3] == [
        f"1 load the base {tmp_path / 'dense'}",
        "2 evaluate the base on digits",
        f"dense: top1 {top1:.4f} on digits, 450 images",
    ]
    assert [line[:6] for line in said[3:-1]] == ["3 prun", "1 load", "2 eval", "dense:", "3 prun", "4 eval", "5 writ"]
    assert f"(dense {top1:.4f})" in said[-1]


def stop(recipe, out, monkeypatch):
    """Begin a build and stop it when the base was evaluated: what was said."""
    said = []

    def compress(*given, **how):
        raise InterruptedError

    monkeypatch.setattr(beginning, "compress", compress)
    with pytest.raises(InterruptedError):
        make(recipe, out, say=said.append)
    monkeypatch.undo()
    return said


def test_a_build_that_goes_on_measures_the_base_again_where_images_changed(entry, tmp_path, monkeypatch):
    recipe, model = entry
    (place := tmp_path / "images").mkdir()
    for split in ("train", "test"):
        dataset("digits", split).select(range(64)).to_parquet(place / f"{split}.parquet")
    recipe = replace(recipe, recipe=replace(recipe.recipe, data=str(place)))
    first = stop(recipe, tmp_path / "out", monkeypatch)[2]
    dataset("digits", "test").select(range(64, 128)).to_parquet(place / "test.parquet")
    again = stop(recipe, tmp_path / "out", monkeypatch)[2]
    figures = [share_right(model, dataset("digits", "test").select(part)) for part in PARTS]

    assert [first, again] == [f"dense: top1 {figure:.4f} on {place}, 64 images" for figure in figures]
    assert figures[0] != figures[1]


PARTS = range(64), range(64, 128)


def test_a_build_that_goes_on_measures_the_base_again_where_it_sees_its_images_otherwise(entry, tmp_path, monkeypatch):
    recipe, model = entry
    first = stop(recipe, tmp_path / "out", monkeypatch)[2]
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.0,), "std": (0.2,)}
    zoo.save(model, tmp_path / "dense", base=zoo.Base("timm/resnet18", NETWORK))
    again = stop(recipe, tmp_path / "out", monkeypatch)[2]

    assert again == f"dense: top1 {share_right(model):.4f} on digits, 450 images"
    assert first != again


def test_a_base_that_guesses_is_told_with_what_may_be_wrong(entry, tmp_path, caplog):
    recipe, model = entry
    torch.nn.init.zeros_(model.fc.weight)  # every digit is the same
    zoo.save(model, tmp_path / "guesses", base=zoo.Base("timm/resnet18", NETWORK))
    with caplog.at_level("WARNING", "zoo"):
        make(replace(recipe, base=Base(str(tmp_path / "guesses"))), tmp_path / "out")

    assert "guessing would be as good: are the 10 classes in the model's order? --labels FILE" in caplog.text
    assert caplog.text.count("guessing") == 1


def test_what_is_made_of_a_compressed_model_is_compared_with_its_base_and_not_with_a_dense_one(entry, tmp_path):
    recipe, said = entry[0], []
    make(recipe, tmp_path / "out")
    again = replace(recipe, name="small_36", base=Base(str(tmp_path / "out")))
    make(again, tmp_path / "again", say=said.append)

    assert said[2].startswith("base: top1 ")
    assert "(base 0." in said[-1]
    assert "dense" not in " ".join(said).replace(str(tmp_path / "dense"), "")


class Maps(torch.nn.Module):
    """Two outputs by their keys, none of them logits."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 16, 3), torch.nn.Conv2d(16, 16, 3)

    def forward(self, images):
        hidden = self.first(images).relu()
        return {"maps": self.second(hidden), "mean": self.second(hidden).mean((2, 3))}


def test_a_model_whose_outputs_have_no_labels_is_compared_with_its_base_and_its_counts_are_verified(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    zoo.save(Maps(), "maps", input=(1, 16, 16))
    recipe, said = Recipe("prune", Budget(0.6), {"images": 32}, "digits", schedule={"epochs": 0}), []
    make(own("maps_60", "maps", "image-feature-extraction", base=Base("./maps"), input=(1, 16, 16), recipe=recipe),
         tmp_path / "out", say=said.append)  # fmt: skip

    assert "dense: nothing is told of outputs like its own, so models are compared with it" in "".join(said)
    assert said[-1].count("agreement") == 1
    found = zoo.verify("./out")
    assert found.passed
    assert {row.figure for row in found.rows} == {"params", "macs", "kmapp", "weights_bytes"}
    assert "can be compared with its base's alone" in caplog.text
