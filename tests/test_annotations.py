"""Objects come in by many doors, as COCO, VOC and the Hub have them, and are always the same boxes."""

import json

import datasets
import pytest
from annotated import (
    CLASSES,
    CONFIG,
    EXPECTED,
    NAMES,
    coco,
    coco_by_split,
    coco_folder,
    identity_of,
    lists,
    many,
    parquet,
    table,
    voc_by_split,
    voc_folder,
    with_metadata,
    xml,
)

from zoo.catalog.data_names import form_of_boxes, limited, told
from zoo.errors import DataError
from zoo.tasks.datasets import dataset
from zoo.tasks.detection.batches import detection_loader
from zoo.tasks.detection.transforms import evaluation_transform

DOORS = {
    "COCO's JSON": coco_folder,
    "COCO's JSON, images in images": lambda folder: coco_folder(folder, "images/train2017"),
    "COCO's JSON by split": coco_by_split,
    "VOC's XML": voc_folder,
    "VOC's XML of several years": lambda folder: voc_folder(folder, "VOCdevkit/VOC2012"),
    "VOC's XML by split": voc_by_split,
    "metadata": with_metadata,
    "parquet": lambda folder: parquet(table(folder / "pictures", lists(), CLASSES), folder),
    "lists": lambda folder: table(folder, lists(), CLASSES),
    "dictionaries": lambda folder: table(
        folder, [[dict(zip(o, v, strict=True)) for v in zip(*o.values(), strict=True)] for o in lists()], CLASSES
    ),
    "names": lambda folder: table(folder, lists(named=True)),
    "corners": lambda folder: table(folder, lists(form="xyxy"), CLASSES),
    "corners by their name": lambda folder: table(folder, lists("xyxy", "xyxy"), CLASSES, "annotations"),
    "a stream": lambda folder: table(folder, lists(), CLASSES).to_iterable_dataset(2),
    "a stream of parquet": lambda folder: datasets.load_dataset(
        parquet(table(folder / "pictures", lists(), CLASSES), folder), data_dir="data", streaming=True
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_the_same_objects_come_in_by_every_door(tmp_path, door):
    data = dataset(DOORS[door](tmp_path / "set"), "train")

    assert [(row["label"]["boxes"], row["label"]["labels"]) for row in data] == EXPECTED
    assert data.features["label"]["labels"].feature.names == NAMES
    flag = "difficult" if "VOC" in door else "crowd"
    assert [row["label"][flag] for row in data] == [[False, True], [], [False]]
    assert [row["label"]["area"] for row in data] == [[500, 300], [], [152]]
    if "VOC" not in door:
        other = table(tmp_path / "other", lists(), CLASSES)
        assert identity_of(data) == identity_of(dataset(other, "train"))


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[5, 5, 20, 20]], "can't be told what its boxes are, 100.0% as xywh and 100.0% as xyxy lie in their images"),
        ([[0.1, 0.1, 0.5, 0.5]], "0.0% as xywh and 0.0% as xyxy"),
        ([[50, 30, 55, 90]], "0.0% as xywh and 0.0% as xyxy"),
        (
            [],
            "no boxes in 256 of its images tell whether they are xywh or xyxy: say which by the data's name, SPEC.xywh",
        ),
    ],
)
def test_what_boxes_are_is_never_guessed(tmp_path, boxes, expected):
    with pytest.raises(DataError, match=expected):
        dataset(many(tmp_path / "set", boxes), "test")


def test_one_box_that_is_wrong_does_not_turn_the_reading_of_all_others(tmp_path):
    corners_of_many = [[30 + i % 9, 20, 50, 39] for i in range(199)]

    with pytest.raises(DataError, match=r"row 0: a box \[9.0, 9.0, 4.0, 4.0\] ends before it begins, read as xyxy"):
        dataset(many(tmp_path / "set", [*corners_of_many, [9, 9, 4, 4]]), "test")


@pytest.mark.parametrize(
    ("form", "expected"), [("xywh", [[5, 5, 25, 30]]), ("xyxy", [[5, 5, 20, 25]])], ids=["xywh", "xyxy"]
)
def test_the_name_of_the_data_says_what_boxes_are(tmp_path, form, expected):
    stored = parquet(many(tmp_path / "one", [[5, 5, 20, 25]]), tmp_path / "set")

    assert dataset(f"{stored}.{form}", "train")[0]["label"]["boxes"] == expected
    assert dataset(f"{stored}.{form}[:1]", "train")[0]["label"]["boxes"] == expected
    assert dataset(many(tmp_path / "named", [[5, 5, 20, 25]], key=form), "train")[0]["label"]["boxes"] == expected
    told = many(tmp_path / "told", [[5, 5, 20, 25]])
    assert dataset(told, "train", boxes=form)[0]["label"]["boxes"] == expected


@pytest.mark.parametrize(
    ("spec", "place", "most", "form"),
    [
        ("org/coco.xywh", "org/coco", None, "xywh"),
        ("org/coco.xyxy[:500]", "org/coco", 500, "xyxy"),
        ("/data/set.v2[:7]", "/data/set.v2", 7, None),
        ("digit_scenes", "digit_scenes", None, None),
        ("", "", None, None),
    ],
)
def test_a_name_has_three_parts(spec, place, most, form):
    assert limited(spec) == (place, most)
    assert form_of_boxes(spec) == form
    assert told(f"/home/me/{spec}") == f"./{spec.rsplit('/', 1)[-1]}" if spec else True


def test_a_form_of_boxes_that_there_are_not_is_refused():
    with pytest.raises(DataError, match=r"^digits: it has no boxes that could be xywh"):
        dataset("digits.xywh", "test")


@pytest.mark.parametrize(
    ("box", "category", "expected"),
    [
        ([float("nan"), 1, 2, 3], 0, r"row 0: expected a box of four finite numbers, found \[nan"),
        ([None, 1, 2, 3], 0, r"row 0: expected a box of four finite numbers, found \[nan"),
        ([1, 2, 3], 0, "row 0: expected a box of four finite numbers"),
        ([1, 2, -3, 4], 0, "row 0: a box .* ends before it begins, read as xywh"),
        ([1, 2, 3, 4], 3, "row 0: an object of class 3, which the data set hasn't"),
        ([1, 2, 3, 4], -1, "row 0: an object of class -1"),
        ([1, 2, 3, 4], None, "row 0: an object of class None"),
    ],
)
def test_what_is_wrong_with_an_object_is_told_with_its_row(tmp_path, box, category, expected):
    data = many(tmp_path / "set", [box], key="xywh", kind=datasets.Value("int64"))
    objects = [{"xywh": [box], "category": [category]}]
    kind = {"xywh": data.features["objects"]["xywh"], "category": datasets.List(CLASSES)}
    data = data.remove_columns("objects").add_column("objects", objects, feature=kind)

    with pytest.raises(DataError, match=expected):
        dataset(data, "test")
    with pytest.raises(DataError, match=expected.replace("row 0", "one.png")):
        list(dataset(data.to_iterable_dataset(), "test"))


@pytest.mark.parametrize("box", [None, [], [30, 20, None, 30]])
def test_a_box_that_is_none_tells_nothing_of_what_boxes_are(tmp_path, box):
    data = many(tmp_path / "set", [[30, 20, 35, 30], box])

    with pytest.raises(DataError, match="row 0: expected a box of four finite numbers"):
        dataset(data, "test")


def test_boxes_without_area_are_left_out_and_counted(tmp_path, caplog):
    data = many(tmp_path / "set", [[1, 2, 3, 4], [5, 5, 0, 9], [5, 5, 9, 0]], key="xywh")
    with caplog.at_level("WARNING"):
        assert dataset(data, "test")[0]["label"]["boxes"] == [[1, 2, 4, 6]]
    assert "2 boxes have no area and are left out" in caplog.text


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"categories": [{"id": 1, "name": "cat"}]}, "a.png has an object of category 90, which the file hasn't"),
        ({"images": [{"id": 0, "file_name": "../../a.png"}], "annotations": []}, "'../../a.png' lies outside"),
        ({"annotations": [{"image_id": 77}]}, "expected images, annotations and categories as COCO has them: KeyError"),
        ({"annotations": None}, "expected images, annotations and categories"),
        ({"annotations": [{"image_id": 0, "category_id": [1]}]}, "expected images, annotations and categories"),
        (
            {"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, None, 3]}]},
            "a.png has a box or an area that isn't of numbers",
        ),
        (
            {"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": "big"}]},
            "a.png has a box or an area that isn't of numbers",
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_objects_is_told(tmp_path, changed, expected):
    folder = coco_folder(tmp_path / "set")
    (tmp_path / "set/annotations/instances_train2017.json").write_text(json.dumps({**coco(), **changed}))

    with pytest.raises(DataError, match=f"instances_train2017.json: .*{expected}"):
        dataset(folder, "train")


def test_categories_of_one_name_are_one_class(tmp_path):
    folder, written = coco_folder(tmp_path / "set"), coco()
    file, alike = tmp_path / "set/annotations/instances_train2017.json", {"id": 0, "name": NAMES[0]}
    file.write_text(json.dumps({**written, "categories": [*written["categories"], alike]}))
    data = dataset(folder, "train")

    assert data.features["label"]["labels"].feature.names == NAMES
    assert [row["label"]["labels"] for row in data] == [labels for _, labels in EXPECTED]


def test_a_split_that_there_is_not_is_told(tmp_path):
    for number, (make, expected) in enumerate(
        [
            (coco_folder, "no objects for a split validation or val or valid or test: found instances_train2017"),
            (voc_folder, "no objects for that split: expected its list in ImageSets/Main"),
        ]
    ):
        with pytest.raises(DataError, match=expected):
            dataset(make(tmp_path / str(number)), "test")


def test_where_voc_has_a_test_split_all_else_is_trained_on(tmp_path):
    folder = voc_folder(tmp_path / "set", "VOC2007")
    lists = tmp_path / "set/VOC2007/ImageSets/Main"
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "test.txt").write_text("c\n")
    (lists / "val.txt").write_text("b\n")

    assert [len(dataset(folder, split)) for split in ("train", "test")] == [2, 1]


def test_xml_that_is_none_is_told(tmp_path):
    folder = voc_folder(tmp_path / "set")
    for text, expected in (("<a", "unclosed token"), (xml("a.png").replace(">31<", ">x<"), "could not convert")):
        (tmp_path / "set/Annotations/a.xml").write_text(text)
        with pytest.raises(DataError, match=f"a.xml: expected objects as VOC has them: .*{expected}"):
            dataset(folder, "train")


def test_a_draw_of_a_stream_is_that_of_the_table(tmp_path):
    data = many(tmp_path / "set", [[1, 2, 30, 30], [40, 20, 19, 9]])
    more = datasets.concatenate_datasets([data] * 9).to_iterable_dataset()

    assert len(list(dataset(more, "train", limit=4))) == 4
    assert len(dataset(datasets.concatenate_datasets([data] * 9), "train", limit=4)) == 4


def test_damaged_images_are_left_out_with_their_boxes(tmp_path):
    folder = coco_folder(tmp_path / "set")
    (tmp_path / "set/train2017/a.png").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"a\.png: no image .*--skip-damaged leaves such images out"):
        list(detection_loader(dataset(folder, "train"), evaluation_transform(CONFIG), 3))
    whole = dataset(folder, "train", skip_damaged=True)
    assert [row["label"]["labels"] for row in whole] == [[], [1]]
