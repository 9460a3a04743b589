"""Labels become the model's by name, or it is said why they can't."""

import json

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from photographs import jpegs
from timm.data.imagenet_info import ImageNetInfo
from timm.models._hub import load_model_config_from_path
from torch import nn

import zoo
from zoo.catalog.entry import Base
from zoo.errors import DataError, RepositoryError
from zoo.hub import repository
from zoo.structure.description import Description
from zoo.tasks.classification.classes import check_same_classes, label_names, matched, name_classes_, read_labels
from zoo.tasks.columns import labels_of
from zoo.tasks.datasets import dataset
from zoo.training.schedule import Schedule
from zoo.verbs.distilling import training_images

WNIDS, DESCRIPTIONS = ImageNetInfo().label_names(), ImageNetInfo().label_descriptions()
BASE = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "num_classes": 5})
ANIMALS = ["cat", "dog", "Sea Lion"]


def model(count, names=None):
    made = nn.Linear(1, 1)
    made.num_classes, made.pretrained_cfg = count, {"num_classes": count, **({"label_names": names} if names else {})}
    return made


def data(names, labels=None, streamed=False):
    """Images whose classes have these names; as many plain numbers where `names` is a number."""
    kind = Value("int64") if isinstance(names, int) else ClassLabel(names=names)
    labels = list(range(names if isinstance(names, int) else len(names))) if labels is None else labels
    stored = [{"bytes": jpegs(1)[0], "path": None}] * len(labels)
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "label": kind})
    table = Dataset.from_dict({"image": stored, "label": labels}, features=features)
    return dataset(table.to_iterable_dataset() if streamed else table, "test")


SAME = {
    "the same names": (ANIMALS, ANIMALS, [0, 1, 2]),
    "another order": (["Sea Lion", "cat", "dog"], ANIMALS, [2, 0, 1]),
    "case, hyphens and underscores": (["SEA-LION", "sea_lion_x", "Cat"], [*ANIMALS, "sea lion x"], [2, 3, 0]),
    "a part of the model's": (["dog"], ANIMALS, [1]),
    "synonyms": (["tench", "goldfish"], ["goldfish, Carassius auratus", "tench, Tinca tinca"], [1, 0]),
    "numbers as strings sort them": (["0", "1", "10", "2"], [str(i) for i in range(12)], [0, 1, 10, 2]),
    "numbers with zeros": (["07", "00"], [str(i) for i in range(10)], [7, 0]),
    "few numbers of many": (["0", "1"], [str(i) for i in range(10)], [0, 1]),
    "wnids of named ImageNet": ([WNIDS[7], WNIDS[999]], DESCRIPTIONS, [7, 999]),
    "names of ImageNet of wnids": ([DESCRIPTIONS[9], "tench"], WNIDS, [9, 0]),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("case", SAME)
def test_labels_become_the_models_by_name(case, streamed):
    theirs, own, expected = SAME[case]
    found = matched(data(theirs, streamed=streamed), model(len(own), own), "animals")

    assert [row["label"] for row in found] == expected
    assert [row["image"]["bytes"] for row in found] == [jpegs(1)[0]] * len(theirs)
    if not streamed:
        assert list(found["label"]) == expected
        assert found.select([len(theirs) - 1])[0]["label"] == expected[-1]


NAMELESS = {
    "in the order of the data's names": (["b", "a", "c"], 3, [0, 1, 2], "no names for its classes: taken in the order"),
    "numbers in order of size": (["0", "1", "10", *"23456789"], 11, [0, 1, 10, *range(2, 10)], "taken in the order"),
    "ImageNet's wnids": ([WNIDS[5], WNIDS[3]], 1000, [5, 3], "taken for ImageNet's"),
    "ImageNet's names that others have too": (
        ["crane (n03126707)", "crane (n02012849)", "Cardigan", "cardigan", "partridge", "n02939185_caldron"],
        1000,
        [517, 134, 264, 474, 86, 469],
        "taken for ImageNet's",
    ),
    "ImageNet's names": (["goldfish", "tench"], 1000, [1, 0], "taken for ImageNet's"),
}


@pytest.mark.parametrize("case", NAMELESS)
def test_of_a_model_without_names_the_order_that_is_assumed_is_said(case, caplog):
    caplog.set_level("INFO", "zoo")
    theirs, count, expected, said = NAMELESS[case]

    assert [row["label"] for row in matched(data(theirs), model(count), "set")] == expected
    assert said in caplog.text


def test_numbers_are_classes_by_their_order_and_this_is_said(caplog):
    caplog.set_level("INFO", "zoo")

    assert list(matched(data(3), model(3, ANIMALS), "set")["label"]) == [0, 1, 2]
    assert "set has numbers for classes: 0 is taken for cat, 1 for dog, and so on" in caplog.text


WRONG = {
    "other names": (["cat", "wolf"], 3, ANIMALS, "set has classes .*'wolf'; of the model's there remain 'dog', 'Sea"),
    "words for numbers": (["zero", "one"], 2, ["0", "1"], "'zero', 'one'.* --labels FILE"),
    "twice the same": (["sea lion", "sea-lion"], 3, ANIMALS, "more than once: 'sea lion'"),
    "fewer, and no names of the model": (["cat", "dog"], 3, None, "2 classes, the model 3 without names"),
    "numbers beyond": (4, 3, ANIMALS, "labels up to 3, the model 3 classes"),
    "other counts": (["0", "1"], 3, None, "set has 2 classes, the model 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mismatch_is_an_error_that_says_what_differs(case):
    theirs, count, own, message = WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        matched(data(theirs), model(count, own), "set")
    assert "\n" not in str(caught.value)


def test_part_of_the_models_classes_is_said(caplog):
    caplog.set_level("INFO", "zoo")
    matched(data(["dog"]), model(3, ANIMALS), "set")

    assert caplog.messages == ["set has 1 of the model's 3 classes"]


FILES = {
    "a mapping to names": ('{"chat": "cat", "chien": "dog"}', ANIMALS, ["chien", "chat"], [1, 0]),
    "a mapping to numbers": ('{"chat": 0, "chien": 1}', None, ["chien", "chat", "2"], [1, 0, 2]),
    "several of one": ('{"poodle": "dog", "beagle": "dog"}', ANIMALS, ["beagle", "poodle"], [1, 1]),
    "the model's names, one a line": ("cat\ndog\nsea lion\n", None, ["dog", "cat"], [1, 0]),
    "the model's names as JSON": ('["cat", "dog", "sea lion"]', None, ["dog", "cat"], [1, 0]),
}


@pytest.mark.parametrize("case", FILES)
def test_labels_of_a_file_map_classes(case, tmp_path):
    text, own, theirs, expected = FILES[case]
    (tmp_path / "labels").write_text(text)
    labels = read_labels(tmp_path / "labels")

    assert list(matched(data(theirs), model(3, own), "set", labels)["label"]) == expected


def test_labels_that_cannot_be_used_are_an_error(tmp_path):
    for text in ("{", "{}", "[1]", ""):
        (tmp_path / "labels").write_text(text)
        with pytest.raises(DataError, match="labels"):
            read_labels(tmp_path / "labels")
    with pytest.raises(DataError, match="set has no class 'wolf'; its classes are 'cat', 'dog'"):
        matched(data(["cat", "dog"]), model(3, ANIMALS), "set", {"wolf": "dog"})
    with pytest.raises(DataError, match="names of the model's 3 classes, found 2"):
        matched(data(["cat", "dog"]), model(3), "set", ["cat", "dog"])


def text(labels):
    """Images whose labels are text."""
    stored = [{"bytes": jpegs(1)[0], "path": None}] * len(labels)
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("string")})
    return Dataset.from_dict({"image": stored, "label": labels}, features=features)


def test_text_labels_are_classes_too():
    assert list(matched(dataset(text(["dog", "cat", "dog"]), "train"), model(3, ANIMALS), "set")["label"]) == [1, 0, 1]


@pytest.mark.parametrize(("kept", "count"), [({}, 5), ({"limit": 3}, 3), ({"skip_damaged": True}, 4)])
def test_text_labels_can_be_drawn_and_chosen_from(kept, count):
    table = text(["dog", None, "cat", "dog"]).add_item({"image": {"bytes": b"damaged", "path": None}, "label": "cow"})
    found = dataset(table, "train", **kept)
    names = found.features["label"].names

    assert names == ["cat", "cow", "dog"]
    assert len(found) == count
    chosen = matched(found, model(3, [*reversed(names)]), "set").select([0, count - 1])
    assert chosen[0]["label"] == 2 - found[0]["label"]
    assert dataset(table, "train")["label"][:] == [2, -1, 0, 2, 1]  # an image without a label has a hidden one


def test_text_labels_of_a_stream_become_numbers_as_well(monkeypatch):
    table = text(["dog", "cat", "dog"])

    def load(spec, streaming, columns=None):
        return {"train": (table.select_columns(columns) if columns else table).to_iterable_dataset()}

    monkeypatch.setattr("datasets.load_dataset", load)
    stream = dataset("org/set", "train")

    assert stream.features["label"].names == ["cat", "dog"]
    assert [row["label"] for row in stream] == [1, 0, 1]
    assert [row["label"] for row in matched(stream, model(2, ["dog", "cat"]), "set")] == [0, 1, 0]
    assert [row["label"] for row in dataset("org/set", "train", limit=3)] == [1, 0, 1]


@pytest.mark.parametrize("kind", ["int32", "uint8", "int64"])
def test_numbers_of_any_width_can_be_mapped_and_chosen_from(kind):
    table = text(["0", "1"]).cast_column("label", Value(kind))
    found = matched(dataset(table, "train"), model(2), "set", {"0": "1", "1": "0"})

    assert found.select([1])[0]["label"] == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_hidden_label_stays_hidden_whatever_the_others_become(streamed):
    found = matched(data(["dog", "cat"], [0, -1, 1], streamed), model(2, ["cat", "dog"]), "set")

    assert [row["label"] for row in found] == [1, -1, 0]


class Torch(torch.utils.data.Dataset):
    """Tensors with labels and, as torchvision's sets have them, names of classes and perhaps labels without images."""

    def __init__(self, labels, classes=None, told=False):
        self.labels = labels
        if classes:
            self.classes = classes
        if told:
            self.targets = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        return torch.zeros(1, 2, 2), self.labels[number]


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("part", [None, [3, 0, 1]])
def test_names_of_a_torch_set_and_of_a_part_of_one_are_matched(told, part):
    held = Torch([0, 1, 2, 2], ["dog", "Sea Lion", "cat"], told)
    opened = dataset(held if part is None else torch.utils.data.Subset(held, part), "train")
    found = matched(opened, model(3, ANIMALS), "set")
    expected = [[1, 2, 0, 0][number] for number in part or range(4)]

    assert found[:]["label"] == expected
    assert found.select([1])[:]["label"] == expected[1:2]
    assert (labels_of(found) is not None) == told
    assert not told or labels_of(found).tolist() == expected
    assert not told or len(set(dataset(held, "train", limit=3)[:]["label"])) == 3  # each class in its share


def test_names_of_torchvision_may_be_synonyms_or_twice_the_same():
    assert dataset(Torch([0], [("tench", "Tinca tinca"), ("goldfish",)]), "train").features["label"].names == [
        "tench, Tinca tinca",
        "goldfish",
    ]
    assert dataset(Torch([0], [("crane",), ("crane",)]), "train").features["label"].num_classes == 2


BEYOND = {
    "tensors": (torch.utils.data.TensorDataset(torch.zeros(2, 1), torch.tensor([0, 3])), "labels up to 3, the model 3"),
    "a torch set": (Torch([0, 3], told=True), "labels up to 3, the model 3"),
    "a torch set that names fewer": (Torch([0, 3], ANIMALS, told=True), "has label 3, expected 0 to 2"),
    "hidden ones": (torch.utils.data.TensorDataset(torch.zeros(2, 1), torch.tensor([0, -1])), "found -1: they are hid"),
    "a table": (Dataset.from_dict({"image": [b"", b""], "label": [0, 3]}), "labels up to 3, the model 3"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_labels_beyond_the_classes_or_hidden_are_found_before_anything_is_computed(case):
    held, message = BEYOND[case]
    with pytest.raises(DataError, match=message) as caught:
        training_images(model(3, ANIMALS), held, Schedule(epochs=1, batch_size=2))
    assert "\n" not in str(caught.value)


def test_a_table_with_labels_beyond_the_classes_it_names_is_an_error():
    table = data(["cat", "dog", "cow"]).map(lambda row: row)
    table.info.features["label"] = ClassLabel(names=["cat", "dog"])
    with pytest.raises(DataError, match="set has labels up to 2, but 2 classes"):
        matched(table, model(3, ANIMALS), "set")


def test_what_was_matched_can_be_matched_again():
    found = matched(data(["poodle", "beagle", "cat"]), model(2, ["cat", "dog"]), "set", {"poodle": 1, "beagle": 1})

    assert matched(found, model(2, ["dog", "cat"]), "set")[:]["label"] == [0, 0, 1]


def test_a_transform_of_somebody_else_is_left_out_and_this_is_said(caplog):
    table = text(["dog", "cat"]).with_transform(lambda batch: {"pixel_values": batch["image"]})
    found = matched(dataset(table, "train"), model(2, ["dog", "cat"]), "set")

    assert found[0]["label"] == 0
    assert found[0]["image"]["bytes"] == jpegs(1)[0]
    assert "without the transform that was set" in caplog.text


def test_images_that_are_rendered_when_read_can_have_other_labels_too():
    pairs = dataset("digit_pairs", "test", limit=100)
    found = matched(pairs, model(100, [f"{pair:02d}" for pair in reversed(range(100))]), "digit_pairs")

    assert list(found["label"]) == list(reversed(range(100)))
    assert found.features["label"].names[0] == "99"
    assert pairs.features["label"].names[0] == "00"
    assert found[3] == {"image": pairs[3]["image"], "label": 96}


def test_teacher_and_student_must_mean_the_same(caplog):
    check_same_classes(model(3, ANIMALS), model(3, ["CAT", "dog", "sea-lion"]), "the teacher")
    check_same_classes(model(3, ANIMALS), model(3), "the teacher")
    with pytest.raises(DataError, match="another order"):
        check_same_classes(model(3, ANIMALS), model(3, ANIMALS[::-1]), "the teacher")
    with pytest.raises(DataError, match="the teacher has 4 classes, the model 3"):
        check_same_classes(model(3, ANIMALS), model(4), "the teacher")


def test_a_model_takes_the_names_of_what_it_is_trained_on_and_keeps_its_own():
    nameless, named = model(3), model(3, ANIMALS)
    for each in (nameless, named):
        name_classes_(each, data(["b", "a", "c"]))

    assert label_names(nameless) == ["b", "a", "c"]
    assert label_names(named) == ANIMALS


@pytest.fixture
def saved(disturb, tmp_path):
    cnn = disturb(BASE, 32)
    cnn.pretrained_cfg = {**cnn.pretrained_cfg, "label_names": list("abcde")}
    repository.write_repository(tmp_path / "named", cnn, Description("named", BASE), {})
    return tmp_path / "named"


def test_names_are_saved_where_timm_keeps_them_and_read_again(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())

    assert config["label_names"] == list("abcde")
    assert "label_names" not in config["pretrained_cfg"]
    assert label_names(zoo.load(saved)) == list("abcde")
    assert load_model_config_from_path(str(saved))[0]["label_names"] == list("abcde")


def test_a_new_head_drops_the_old_names(saved):
    assert label_names(zoo.load(saved, num_classes=7)) is None
    assert label_names(zoo.load(saved, in_chans=1)) == list("abcde")


@pytest.mark.parametrize("names", ["abcde", ["a"], [1, 2, 3, 4, 5]])
def test_names_that_are_no_list_of_as_many_are_refused(names, saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "label_names": names}))
    with pytest.raises(RepositoryError, match="label_names isn't a list of 5 names"):
        zoo.load(saved)


def test_a_digit_is_a_digit_in_folders_of_any_order(tmp_path):
    """Folders of words are refused; of numbers they give what the data set itself gives."""
    from zoo.verbs.measuring import report_of

    digits, own = dataset("digits", "test", limit=60), zoo.load("digits_cnn")
    for name in ("numbers", "words"):
        for number, row in enumerate(digits):
            label = str(row["label"])
            label = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"][int(label)]
            label = str(row["label"]) if name == "numbers" else label
            for split in ("train", "test"):
                path = tmp_path / name / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(row["image"]["bytes"])

    assert report_of(own, str(tmp_path / "numbers")).measured["top1"] == pytest.approx(1, abs=0.05)
    with pytest.raises(DataError, match="words has classes that the model hasn't"):
        report_of(own, str(tmp_path / "words"))
    assert torch.is_tensor(zoo.transform(own)(digits[0]["image"]))
