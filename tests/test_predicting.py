"""predict: what a model says of images, whatever holds them, whatever the model was copied by."""

import copy
import gc
import io
import json
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from photographs import jpegs
from PIL import Image

import zoo
from zoo.cli import main
from zoo.errors import DataError, StructureError
from zoo.structure.describing import describe
from zoo.structure.description import attach_, config_of, configure_
from zoo.tasks.classification.predictions import class_labels
from zoo.tasks.datasets import dataset

KINDS = {  # how an image of grey pixels [H, W] is given
    "a path": lambda pixels, folder: written(pixels, folder / "it.png"),
    "a path as text": lambda pixels, folder: str(written(pixels, folder / "it.png")),
    "bytes": lambda pixels, folder: written(pixels, folder / "it.png").read_bytes(),
    "PIL": lambda pixels, folder: Image.fromarray(pixels),
    "an array": lambda pixels, folder: pixels,
    "an array of colours": lambda pixels, folder: np.stack([pixels] * 3, 2),
    "an array of one channel": lambda pixels, folder: pixels[:, :, None],
    "a tensor of bytes": lambda pixels, folder: torch.from_numpy(np.stack([pixels] * 3)),
    "a tensor of floats": lambda pixels, folder: torch.from_numpy(np.stack([pixels] * 3)).float() / 255,
    "a row's value": lambda pixels, folder: {"bytes": written(pixels, folder / "it.png").read_bytes(), "path": None},
}


def written(pixels, path):
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def digits():
    """The pixels of twelve digits, and what they are."""
    rows = dataset("digits", "test").select(range(12))
    return [np.asarray(Image.open(io.BytesIO(each["bytes"]))) for each in rows["image"]], rows["label"]


@pytest.fixture(scope="module")
def model():
    return zoo.load("digits_cnn_pruned_25")


def same(found, expected):
    """Whether predictions are those expected, bit by bit."""
    assert len(found) == len(expected)
    return all(
        mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in ("scores", "labels"))
        for mine, its in zip(found, expected, strict=True)
    )


def test_a_classifier_gives_its_five_most_likely_classes_by_name(model, digits):
    pixels, labels = digits
    found = zoo.predict(model, pixels)
    images = torch.stack([zoo.transform(model)(Image.fromarray(each)) for each in pixels])
    scores, classes = model(images).softmax(1).sort(1, descending=True)

    assert [each["names"][0] for each in found] == [str(label) for label in labels]
    for each, score, label in zip(found, scores, classes, strict=True):
        torch.testing.assert_close(each["scores"], score[:5])
        assert each["labels"].tolist() == label[:5].tolist()
        assert each["names"] == [str(number) for number in each["labels"].tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pixels_are_seen_whatever_holds_them(kind, model, digits, tmp_path):
    pixels = digits[0][3]
    held = KINDS[kind](pixels, tmp_path)

    assert same(model.predict(held), model.predict([Image.fromarray(pixels)]))


def test_images_of_all_kinds_and_sizes_go_together_in_batches_that_are_bounded(model, digits, tmp_path):
    mixed = [make(digits[0][0], tmp_path) for make in KINDS.values()] + jpegs(3) + digits[0] * 5
    sizes = []
    hook = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    found = model.predict(iter(mixed))
    hook.remove()

    assert sizes == [32, 32, len(mixed) - 64]
    for each, expected in zip(found, (model.predict(image)[0] for image in mixed), strict=True):
        assert each["names"][0] == expected["names"][0]
        torch.testing.assert_close(each["scores"], expected["scores"], atol=1e-5, rtol=0)


def test_no_images_give_nothing(model):
    assert model.predict([]) == []


def test_a_photograph_is_seen_upright(model, digits, tmp_path):
    turned, exif = Image.fromarray(np.rot90(digits[0][1])), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    turned.save(tmp_path / "turned.png", exif=exif)

    assert same(model.predict(tmp_path / "turned.png"), model.predict(digits[0][1]))


def test_predicting_leaves_a_model_as_it_was_and_its_tensors_are_ordinary(model, digits):
    trained = copy.deepcopy(model).train()
    before = copy.deepcopy(trained.state_dict())
    found = trained.predict(digits[0])[0]

    assert trained.training
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert not found["scores"].requires_grad
    found["scores"] *= 2  # inference tensors would refuse


def unpickled(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301, TID251


def reloaded(model):
    file = io.BytesIO()
    torch.save(model, file)  # noqa: TID251  # as users do
    file.seek(0)
    return torch.load(file, weights_only=False)  # noqa: TID251


COPIES = {
    "deepcopy": copy.deepcopy,
    "deepcopy of a deepcopy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "pickle": unpickled,
    "torch.save": reloaded,
    "a deepcopy of what was pickled": lambda model: copy.deepcopy(unpickled(model)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["digits_cnn_pruned_25", "digits_vit_lowrank_50", "digits_cnn_int8"])
def test_a_copy_predicts_by_its_own_weights(name, how, digits):
    loaded = zoo.load(name)
    copied = COPIES[how](loaded)

    assert copied.state_dict().keys() == loaded.state_dict().keys()
    assert same(copied.predict(digits[0]), loaded.predict(digits[0]))
    with torch.no_grad():
        for each in (*copied.parameters(), *copied.buffers()):
            each.zero_()
    assert loaded.predict(digits[0][0])[0]["names"][0] == str(digits[1][0])
    assert len(set(copied.predict(digits[0][0])[0]["scores"].tolist())) == 1


def test_an_average_predicts_as_the_model_that_it_holds(model, digits):
    assert same(zoo.predict(torch.optim.swa_utils.AveragedModel(model), digits[0]), model.predict(digits[0]))


def test_a_model_of_integers_predicts_alike_in_onnxruntime(digits):
    reference, fast = zoo.load("digits_cnn_int8"), zoo.load("digits_cnn_int8", backend="onnxruntime")

    assert same(fast.predict(digits[0]), reference.predict(digits[0]))
    copied = copy.deepcopy(fast)
    assert copied.predict.__self__ is copied


def test_features_are_given_for_each_image(model, digits):
    features = zoo.load("digits_cnn_pruned_25", features_only=True)
    found = features.predict(digits[0][:2])
    expected = features(torch.stack([zoo.transform(model)(Image.fromarray(each)) for each in digits[0][:2]]))

    for number, each in enumerate(found):
        assert [part.shape for part in each["features"]] == [part.shape[1:] for part in expected]
        torch.testing.assert_close(each["features"], [part[number] for part in expected])


def test_classes_are_called_as_a_model_says_else_as_imagenets_else_by_number():
    assert class_labels({"label_names": ["cat", "dog"]}, 2) == ["cat", "dog"]
    assert class_labels({"label_names": ["of", "another", "head"]}, 2) == ["0", "1"]
    assert class_labels({}, 3) == ["0", "1", "2"]
    assert class_labels({}, 1000)[:2] == ["tench, Tinca tinca", "goldfish, Carassius auratus"]


def test_fewer_classes_than_asked_for_are_all_given(model, digits):
    assert len(model.predict(digits[0][0], top=2)[0]["names"]) == 2
    assert len(model.predict(digits[0][0], top=99)[0]["names"]) == 10


DAMAGED = {
    "no such file": ("/none/x.png", r"^/none/x\.png: no image that can be decoded: No such file or directory$"),
    "a folder": ("/", r"^/: no image that can be decoded: Is a directory$"),
    "bytes of a page": (b"<html>", "^image 1: no image that can be decoded: its bytes are of no known format$"),
    "a number": (5, "^5: no image that can be decoded: expected a PIL image, a path, bytes"),
    "an array without pixels": (
        np.zeros((0, 5, 3), np.uint8),
        r"^image 1: expected an array .* found \[0, 5, 3\]",
    ),
    "an image without pixels": (Image.new("RGB", (0, 5)), "^an image: no image that can be decoded: it has no pixels$"),
    "channels first": (np.zeros((3, 8, 9), np.uint8), r"^image 1: expected an array .* found \[3, 8, 9\] of uint8"),
    "channels last": (torch.zeros(8, 9, 3), r"^image 1: expected an array .* found \[8, 9, 3\] of float32"),
    "floats in an array": (np.zeros((8, 9, 3)), r"^image 1: expected an array .* found \[8, 9, 3\] of float64"),
    "what is normalised already": (torch.randn(3, 8, 9), "^image 1: .* as before any transform; found"),
    "a tensor that isn't finite": (torch.full((3, 8, 9), torch.nan), "^image 1: expected"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_image_is_said_in_one_line(name, model, digits):
    image, said = DAMAGED[name]
    with pytest.raises(DataError, match=said) as caught:
        model.predict([digits[0][0], image])
    assert "\n" not in str(caught.value)


OPTIONS = {
    "of a detector": ({"score": 0.5}, "score says nothing to such a model, which knows top"),
    "none at all": ({"top": 0}, "top is 0, expected a whole number"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_option_is_said(name, model, digits):
    options, said = OPTIONS[name]
    with pytest.raises(StructureError, match=said):
        model.predict(digits[0], **options)


def test_logits_that_are_not_finite_and_outputs_that_are_no_logits_are_said(digits):
    broken = zoo.load("digits_cnn_pruned_25")
    with torch.no_grad():
        broken.fc.bias[0] = torch.nan
    with pytest.raises(DataError, match="the logits aren't finite; look at the model's weights"):
        broken.predict(digits[0])
    broken.fc = torch.nn.Unflatten(1, (-1, 1, 1))
    with pytest.raises(StructureError, match=r"expected logits \[B, classes\], the model gives \[12, "):
        broken.predict(digits[0])


def test_a_model_that_says_nothing_of_its_input_is_told_so(digits):
    with pytest.raises(StructureError, match="names no input size"):
        zoo.predict(torch.nn.Flatten(), digits[0])


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["predict", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path, digits):
    """Three images and a text."""
    for number, pixels in enumerate(digits[0][:3]):
        written(pixels, tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("of a trip")
    return tmp_path


def test_the_command_prints_names_and_scores_of_files_and_of_folders(run, folder, digits):
    code, out, err = run("digits_cnn", folder, folder / "0.png", "--top", 1)
    rows = [line.split() for line in out.splitlines() if ".png" in line]

    assert (code, err) == (0, "")
    assert [(row[0], row[1]) for row in rows] == [
        (str(folder / f"{number}.png"), str(digits[1][number])) for number in (0, 1, 2, 0)
    ]
    assert all(float(row[2]) > 0.9 for row in rows)


def test_the_command_prints_an_object_for_each_image(run, folder, model):
    code, out, _ = run("digits_cnn_pruned_25", folder, "--json")
    expected = model.predict(sorted(folder.glob("*.png")))

    assert code == 0
    assert [each["image"] for each in json.loads(out)] == [str(folder / f"{number}.png") for number in range(3)]
    for each, its in zip(json.loads(out), expected, strict=True):
        assert each["names"] == its["names"]
        assert each["scores"] == its["scores"].tolist()
        assert each["labels"] == its["labels"].tolist()


MISTAKES = {
    "no such file": (["digits_cnn", "none.png"], "no file none.png: expected an image, or a folder of images"),
    "no image": (["digits_cnn", "notes.txt"], "notes.txt: no image that can be decoded: its bytes are of no known"),
    "a folder without images": (["digits_cnn", "empty"], "no images in empty: expected files that end in .bmp, "),
    "no boxes to draw": (["digits_cnn", "0.png", "--out", "drawn"], "digits_cnn gives no boxes, which could be drawn"),
    "a copy over an image": (["digits_cnn", "0.png", "--out", "."], "0.png is one of the images: choose another"),
    "two copies of one name": (["digits_cnn", "0.png", "empty/../0.png", "--out", "drawn"], "2 images would be drawn"),
    "an option of detectors": (["digits_cnn", "0.png", "--score", "0.5"], "score says nothing to such a model"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name, run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    arguments, said = MISTAKES[name]
    code, out, err = run(*arguments)

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (folder / "drawn").exists()


def test_a_model_of_texts_predicts_texts():
    model = zoo.create("zoo/word_cnn")
    configure_(model, {**config_of(model), "vocabulary": ["", "?", "who", "is"], "label_names": list("abcdef")})
    attach_(model, replace(describe(model), task="text-classification"))
    found = zoo.predict(model, ["Who is Galileo", "is"])
    expected = model(torch.stack([zoo.transform(model)("who is somebody"), zoo.transform(model)("is")])).softmax(1)

    for each, scores in zip(found, expected, strict=True):
        torch.testing.assert_close(each["scores"], scores.sort(descending=True).values[:5].detach())
        assert each["names"] == ["abcdef"[label] for label in each["labels"].tolist()]
    assert same(zoo.predict(model, "who is galileo"), found[:1])


def test_a_model_that_is_dropped_gives_its_memory_back_at_once():
    loaded = zoo.load("digits_cnn")
    known = weakref.ref(loaded)
    gc.disable()
    try:
        del loaded
        assert known() is None
    finally:
        gc.enable()
