"""Data, transforms, batches, and the metric."""

import json
import os
import random
import signal
from io import BytesIO
from pathlib import Path

import accelerate
import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split

from zoo.errors import DataError, UnknownName
from zoo.tasks.classification.accuracy import Accuracy
from zoo.tasks.classification.classes import num_classes
from zoo.tasks.classification.transforms import evaluation_transform, training_transform
from zoo.tasks.datasets import dataset
from zoo.tasks.loader import loader
from zoo.tasks.pixels import decode
from zoo.tasks.streams import Stream

GREY = {"input_size": [1, 16, 16], "mean": [0.3], "std": [0.35], "interpolation": "bilinear", "crop_pct": 1.0}
AUGMENT = {"scale": [0.6, 1.0], "hflip": 0.0, "color_jitter": [0.4, 0.4, 0.4], "re_prob": 0.3, "re_mode": "pixel"}


@pytest.fixture(scope="module")
def train():
    return dataset("digits", "train")


@pytest.fixture(scope="module")
def test():
    return dataset("digits", "test")


@pytest.fixture
def make_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(*paths):
        for shade, path in enumerate(paths):
            (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), shade).save(tmp_path / "images" / path)
        return str(tmp_path / "images")

    return make


def batches(data, **options):
    return [(images, labels) for images, labels in loader(data, training_transform(GREY, AUGMENT), 64, **options)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_digits_are_scikit_learns_own_split(train, test):
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=450, stratify=y, random_state=0)

    for data, pixels, labels in ((train, x_train, y_train), (test, x_test, y_test)):
        read = np.stack([np.asarray(decode(image, "L")) for image in data["image"]]).reshape(-1, 64)
        assert list(data["label"]) == labels.tolist()
        np.testing.assert_allclose(read, pixels * 255 / 16, atol=0.5)
    assert Image.open(BytesIO(test[0]["image"]["bytes"])).mode == "L"
    assert num_classes(train) == 10


def test_a_limit_never_asks_for_more_digits_than_there_are(test):
    assert list(dataset("digits", "test", limit=10**6)["label"]) == list(test["label"])


def test_image_i_of_digit_pairs_is_the_same_whatever_the_size_and_the_order_of_reading():
    large, small = dataset("digit_pairs", "train"), dataset("digit_pairs", "train", limit=50)

    assert (len(large), len(small), len(dataset("digit_pairs", "test"))) == (100_000, 50, 5_000)
    assert large[[40, 3]]["image"] == [small[40]["image"], small[3]["image"]]
    assert large[3]["image"] != large[103]["image"]


def test_digit_pairs_differ_between_the_splits_and_share_no_digit():
    glyphs = []
    for split in ("train", "test"):
        drawn_from = dataset("digit_pairs", split, limit=1).format["format_kwargs"]["transform"].keywords["glyphs"]
        assert sorted(np.asarray(image).tobytes() for digit in drawn_from for image in digit) == sorted(
            np.asarray(decode(image, "L")).tobytes() for image in dataset("digits", split)["image"]
        )
        glyphs.append({np.asarray(image).tobytes() for digit in drawn_from for image in digit})

    assert not glyphs[0] & glyphs[1]
    assert dataset("digit_pairs", "train", limit=1)[0]["image"] != dataset("digit_pairs", "test", limit=1)[0]["image"]


def test_digit_pairs_have_a_hundred_equal_classes_and_grey_images_of_64_px():
    data = dataset("digit_pairs", "test", limit=1000)

    assert np.bincount(data["label"]).tolist() == [10] * 100
    assert num_classes(data) == 100
    assert {(image.mode, image.size) for image in data[:20]["image"]} == {("L", (64, 64))}


def test_the_digits_of_a_pair_stand_left_and_right():
    """Averaged over many images, a pair's halves look like the digits that its label names."""
    data = dataset("digit_pairs", "train", limit=20_000)
    ones, zeros = ([int(label) + 100 * k for k in range(200)] for label in ("11", "10"))
    difference = np.mean([np.asarray(image, float) for image in data[zeros]["image"]], 0) - np.mean(
        [np.asarray(image, float) for image in data[ones]["image"]], 0
    )

    assert np.abs(difference[:, 36:60]).mean() > 1.5 * np.abs(difference[:, 4:28]).mean()


def test_a_folder_is_read_with_its_classes_and_its_validation_split(make_folder):
    folder = make_folder("train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png", "val/dog/4.png")

    assert dataset(folder, "train")["label"][:] == [0, 1]
    assert [decode(image, "L").getpixel((0, 0)) for image in dataset(folder, "test")["image"]] == [2, 3, 4]
    assert dataset(folder, "test").features["label"].names == ["cat", "dog"]


def test_a_limit_draws_from_all_classes_of_a_folder(make_folder):
    folder = make_folder(*(f"train/{'cat' if i < 20 else 'dog'}/{i:02d}.png" for i in range(40)))

    assert set(dataset(folder, "train", limit=10)["label"]) == {0, 1}
    assert dataset(folder, "train", limit=10)["image"][:] == dataset(folder, "train", limit=10)["image"][:]


def test_a_label_column_of_another_name_is_renamed(make_folder):
    folder = make_folder("train/0.png", "train/1.png")
    lines = [json.dumps({"file_name": f"{i}.png", "fine_label": i + 5, "note": "x"}) for i in range(2)]
    Path(folder, "train", "metadata.jsonl").write_text("\n".join(lines))
    data = dataset(folder, "train")

    assert sorted(data.column_names) == ["image", "label"]
    assert data["label"][:] == [5, 6]
    assert num_classes(data) is None


def test_a_hub_data_set_is_streamed_with_columns_renamed_and_validation_preferred(monkeypatch, test):
    cifar = test.rename_columns({"image": "img", "label": "fine_label"}).to_iterable_dataset()
    hub = datasets.IterableDatasetDict({"test": cifar, "validation": cifar.skip(5)})
    monkeypatch.setattr(datasets, "load_dataset", lambda spec, streaming: hub)
    rows = list(dataset("org/name", "test").take(3))

    assert [row["label"] for row in rows] == list(test["label"])[5:8]
    assert [row["image"] for row in rows] == [test[i]["image"] for i in range(5, 8)]
    with pytest.raises(DataError, match=r"^org/name: no split for train: expected train, found test, validation$"):
        dataset("org/name", "train")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            "digit",
            UnknownName,
            r"^no data set 'digit'; possible are: digits, digit_pairs, digit_scenes, a folder, a Hub id",
        ),
        (
            "/no/such/folder",
            DataError,
            r"^/no/such/folder: no such folder; expected images in its train/CLASS",
        ),
        ("./missing", DataError, r"^\./missing: no such folder; expected images in its train/CLASS and "),
        (__file__, DataError, r"test_tasks\.py: a file, neither a folder nor parquet; expected images in "),
        ("org/name", DataError, r"^org/name: neither a folder here nor .*Couldn't reach.*hf auth login$"),
    ],
)
def test_data_that_cannot_be_found_is_an_error_of_one_line(spec, error, message, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message) as caught:
        dataset(spec, "test")

    assert "\n" not in str(caught.value)


def test_gated_data_says_where_its_terms_are_accepted(monkeypatch):
    def refuse(name, **_):
        raise datasets.exceptions.DatasetNotFoundError(
            f"Dataset '{name}' is a gated dataset on the Hub. You must be ..."
        )

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("zoo.tasks.datasets.check_card", lambda spec: None)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    page = "https://huggingface.co/datasets/ILSVRC/imagenet-1k"
    with pytest.raises(
        DataError, match=f"^ILSVRC/imagenet-1k is gated: accept its terms on {page}, then: hf auth login$"
    ):
        dataset("ILSVRC/imagenet-1k", "test")


def test_a_folder_without_images_classes_or_the_split_is_an_error(make_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images could be read"):
        dataset(str(tmp_path / "empty"), "train")
    folder = make_folder("train/0.png", "train/1.png")
    with pytest.raises(DataError, match=r"images: no classes were found; expected images in its train/CLASS and "):
        dataset(folder, "train")
    with pytest.raises(
        DataError, match=r"no split for test: expected validation or val.*, found train; expected .*/CL"
    ):
        dataset(folder, "test")
    with pytest.raises(DataError, match="split 'val': expected one of train, test"):
        dataset("digits", "val")


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (1, "L"), (3, "L"), (3, "RGBA"), (3, "P")])
def test_images_of_any_mode_come_out_with_the_models_channels(channels, mode):
    cfg = {"input_size": [channels, 16, 16], "mean": [0.5] * channels, "std": [0.25] * channels, "crop_pct": 1.0}
    image = Image.new(mode, (20, 30))
    black = torch.full((channels, 16, 16), -2.0)

    torch.testing.assert_close(evaluation_transform(cfg)(image), black)
    torch.testing.assert_close(training_transform(cfg, {"color_jitter": None})(image), black)


@pytest.mark.parametrize(
    "augment", [{}, {"auto_augment": "rand-m6-mstd0.5"}, {"auto_augment": "augmix-m3"}, {"no_aug": True}]
)
def test_every_kind_of_augmentation_works_on_grey_images(augment, train):
    images, _ = next(iter(loader(train, training_transform(GREY, augment), 256, epoch=0)))

    assert images.shape == (256, 1, 16, 16)
    assert images.isfinite().all()


def test_wrong_settings_of_a_transform_are_errors():
    with pytest.raises(DataError, match=r"^augment: unknown flip; possible are: auto_augment, color_jitter,"):
        training_transform(GREY, {"flip": 0.5})
    for said in ({}, {"mean": [0.5]}, {"std": [0.5]}):
        with pytest.raises(DataError, match=r"a mean and a std for each, found input_size \[1, 16, 16\], mean \[0"):
            evaluation_transform({"input_size": [1, 16, 16], **said})


def test_evaluation_batches_are_all_images_in_order(test):
    read = list(loader(test, evaluation_transform(GREY), 64))

    assert [len(labels) for _, labels in read] == [64] * 7 + [2]
    assert torch.cat([labels for _, labels in read]).tolist() == list(test["label"])
    assert (read[0][0].dtype, read[0][1].dtype) == (torch.float32, torch.int64)


def test_a_training_epoch_is_a_permutation_and_the_partial_batch_is_dropped(train):
    numbered = datasets.Dataset.from_dict({"image": train["image"][:200], "label": list(range(200))})
    orders = [torch.cat([y for _, y in batches(numbered, seed=1, epoch=epoch)]).tolist() for epoch in (0, 0, 1)]

    assert len(set(orders[0])) == 192
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != torch.cat([y for _, y in batches(numbered, seed=2, epoch=0)]).tolist()
    assert orders[0][:128] == torch.cat([y for _, y in batches(numbered, seed=1, epoch=0, limit_batches=2)]).tolist()
    with pytest.raises(DataError, match="at least one batch of 64 images, found 63; lower batch_size"):
        batches(numbered.select(range(63)), epoch=0)


def test_batches_are_the_same_whatever_the_number_of_workers(train):
    data = train.select(range(320))
    torch.manual_seed(1)
    alone = batches(data, seed=3, epoch=2)
    torch.manual_seed(2)

    assert same(alone, batches(data, seed=3, epoch=2, workers=2))
    assert not torch.equal(alone[0][0], batches(data, seed=3, epoch=1)[0][0])


def test_ctrl_c_leaves_the_workers_alone(test):
    transform, here = evaluation_transform(GREY), os.getpid()

    def interrupted(image):
        assert os.getpid() != here
        signal.raise_signal(signal.SIGINT)
        return transform(image)

    found, expected = (loader(test, each, 64, workers=w) for each, w in ((interrupted, 1), (transform, 0)))
    assert same(list(found), list(expected))


def test_an_image_is_augmented_differently_in_every_epoch(train):
    first, second = (batches(train.select([0] * 64), epoch=epoch)[0][0] for epoch in (0, 1))

    assert len(torch.unique(torch.cat([first, second]), dim=0)) > 120


@pytest.mark.parametrize("streamed", [False, True])
def test_the_callers_random_generators_are_left_alone(streamed, train, test):
    def drawn():
        return random.getrandbits(32), np.random.random(), torch.rand(1).item()

    data = Stream(train.to_iterable_dataset(), len(train)) if streamed else train
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    batches(data, epoch=0, limit_batches=3)
    batches(data, epoch=0, limit_batches=3, workers=1)

    assert expected == drawn()


def test_accelerate_skips_exactly_the_batches_that_were_seen(train):
    whole = batches(train, epoch=4)
    prepared = accelerate.Accelerator().prepare_data_loader(
        loader(train, training_transform(GREY, AUGMENT), 64, epoch=4)
    )

    assert same(whole, list(prepared))
    assert same(whole[5:], list(accelerate.skip_first_batches(prepared, 5)))


def test_a_stream_is_shuffled_by_seed_and_epoch(train, test):
    stream = Stream(train.to_iterable_dataset(num_shards=4), len(train))
    first = batches(stream, seed=1, epoch=0)

    assert len(first) == 1347 // 64
    assert same(first, batches(stream, seed=1, epoch=0))
    assert not same(first, batches(stream, seed=1, epoch=1))
    evaluation = evaluation_transform(GREY)
    assert same(list(loader(test.to_iterable_dataset(), evaluation, 64)), list(loader(test, evaluation, 64)))


def test_accuracy_is_scikit_learns_and_leaves_no_file(tmp_path):
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 3, (2, 1000))
    metric = Accuracy(keep_in_memory=True, cache_dir=str(tmp_path))

    measured = metric.compute(predictions=predictions, references=references)
    assert {"top1": pytest.approx(accuracy_score(references, predictions))} == measured
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
