"""Images with boxes as a detector takes them: where a pixel goes, what becomes of a box, and the way back."""

import io

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from zoo.errors import DataError
from zoo.models.targets import collated, input_boxes, restored, target_of
from zoo.tasks.boxes import label_features
from zoo.tasks.datasets import dataset
from zoo.tasks.detection import DETECTION
from zoo.tasks.detection.batches import detection_loader
from zoo.tasks.detection.mosaic import mosaic
from zoo.tasks.detection.transforms import RESIZES, evaluation_transform, letterbox, training_transform
from zoo.tasks.identity import Identified, with_targets
from zoo.tasks.loader import Mixed
from zoo.tasks.streams import Stream
from zoo.training.schedule import Machine, Schedule
from zoo.verbs.distilling import epochs

CONFIG = {"input_size": [3, 64, 96], "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
STILL = {"hue": 0, "saturation": 0, "value": 0, "flip": 0, "scale": 0, "translate": 0, "mosaic": 0}
side = st.integers(1, 4000)


def label(*boxes, labels=None, **flags):
    count = len(boxes)
    plain = {"boxes": list(boxes), "labels": labels or [0] * count, "area": [1.0] * count}
    return plain | {key: flags.get(key, [False] * count) for key in ("crowd", "difficult")}


def picture(boxes, size):
    """A black image with each box in white."""
    image = Image.new("RGB", size)
    for x1, y1, x2, y2 in boxes:
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(255, 255, 255))
    return image


def bright(tensor, most=0.6):
    """The box around what is brighter than the grey of the margins."""
    rows, columns = np.nonzero(tensor.amax(0).numpy() > most)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@given(width=side, height=side, resize=st.sampled_from(sorted(RESIZES)), to=st.sampled_from([(32, 32), (640, 384)]))
def test_boxes_come_back_to_a_thousandth_of_a_pixel_from_any_shape(width, height, resize, to):
    new_width, new_height, left, top = RESIZES[resize](width, height, to)
    geometry = (new_width / width, new_height / height, left, top, width, height)
    boxes = [[0, 0, width, height], [width / 3, height / 7, width / 2, height - height / 9]]
    targets = collated([target_of(label(*boxes), geometry)])
    inside, labels = input_boxes(targets)

    assert 1 <= new_width <= to[0]
    assert 1 <= new_height <= to[1]
    assert inside[0, 0].tolist() == pytest.approx([left, top, left + new_width, top + new_height], abs=1e-3)
    assert (restored(inside, targets[:, 0]) - torch.tensor(boxes)).abs().max() <= 1e-3
    assert labels.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(4, 3, (8, 6, 0, 1)), (3, 4, (6, 8, 1, 0)), (16, 16, (8, 8, 0, 0)), (1, 4000, (1, 8, 3, 0)), (7, 5, (8, 6, 0, 1))],
)
def test_a_letterbox_keeps_the_shape_and_leaves_the_odd_pixel_below_and_to_the_right(width, height, expected):
    assert letterbox(width, height, (8, 8)) == expected


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(96, 64), (200, 50), (31, 90), (1, 400), (400, 1)])
def test_pixels_lie_where_their_boxes_say(resize, size):
    box = [size[0] // 4, size[1] // 4, size[0] - size[0] // 5, size[1] - size[1] // 3]
    transform = evaluation_transform({**CONFIG, "detector": {"resize": resize}})
    tensor, target = transform.boxed(picture([box], size), label(box))
    inside = input_boxes(target[None])[0][0, 0]

    assert tensor.shape == (3, 64, 96)
    assert bright(tensor) == pytest.approx(inside.tolist(), abs=1.01)


def test_a_letterbox_is_filled_with_grey_before_the_mean_is_taken_off():
    transform = evaluation_transform({**CONFIG, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1]})

    tensor = transform(Image.new("RGB", (96, 32), (255, 255, 255)))
    assert tensor[:, 0, 0].tolist() == pytest.approx([(114 / 255 - 0.5) / std for std in (0.25, 0.5, 1)])
    assert tensor[:, 32, 0].tolist() == pytest.approx([2, 1, 0.5])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_upright_image_however_it_is_stored(orientation):
    box, transform = [10, 20, 40, 50], evaluation_transform(CONFIG)
    upright = picture([box], (60, 90))
    stored = upright
    for turn in {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }.get(orientation, []):
        stored = stored.transpose(turn)
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    stored.save(file, "PNG", exif=exif)
    tensor, target = transform.boxed(file.getvalue(), label(box))

    assert torch.equal(tensor, transform(upright))
    assert target[0, 4:6].tolist() == [60, 90]
    assert bright(tensor) == pytest.approx(input_boxes(target[None])[0][0, 0].tolist(), abs=1.01)


def test_boxes_are_clipped_and_those_of_which_nothing_is_left_are_gone():
    given = label([-5, -5, 4, 4], [20, 20, 30, 30], [3, 3, 99, 5], [10, 0, 12, 8], labels=[1, 2, 3, 4])

    target = evaluation_transform(CONFIG).boxed(Image.new("L", (10, 8)), given)[1]
    assert target[1:, :5].tolist() == [[0, 0, 4, 4, 1], [3, 3, 10, 5, 3]]


def test_nothing_is_trained_on_crowds_difficult_objects_and_what_fills_up():
    flags = {"crowd": [False, True, False, True], "difficult": [False, False, True, True]}
    targets = collated(
        [target_of(label(*[[0, 0, 2, 2]] * 4, **flags), (1, 1, 0, 0, 8, 8)), target_of(label(), (1, 1, 0, 0, 8, 8))]
    )

    assert targets.shape == (2, 5, 7)
    assert targets[0, 1:, 5].tolist() == [0, 1, 2, 1]
    assert input_boxes(targets)[1].tolist() == [[0, -1, -1, -1], [-1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [(Image.new("RGB", (0, 5)), "it has no pixels"), (b"", "it is empty"), (b"x", "no known format")],
)
def test_an_image_without_pixels_is_told(image, expected):
    with pytest.raises(DataError, match=expected):
        evaluation_transform(CONFIG)(image)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"input_size": [2, 8, 8]}, "expected 1 or 3 channels"),
        ({"mean": [0]}, "a mean and a std for each"),
        ({"detector": {"resize": "crop"}}, "expected resize letterbox or stretch .*found 'crop'"),
        ({"interpolation": "magic"}, "found 'letterbox' and 'magic'"),
    ],
)
def test_a_preprocessing_that_there_is_not_is_refused(changed, expected):
    with pytest.raises(DataError, match=expected):
        evaluation_transform({**CONFIG, **changed})


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ({"mixup": 1}, "augment: unknown key 'mixup', known are hue, saturation, value, flip"),
        ({"flip": 2}, "augment.flip is 2, expected"),
        ({"scale": 1.5}, "augment.scale is 1.5, expected"),
        ({"hue": "red"}, "augment.hue is 'red', expected a number"),
    ],
)
def test_an_augmentation_that_there_is_not_is_refused(augment, expected):
    with pytest.raises(DataError, match=expected):
        training_transform(CONFIG, augment)


def test_nothing_varied_is_the_preprocessing_of_evaluation():
    box = [10, 20, 150, 80]
    image, given = picture([box], (200, 100)), label(box, labels=[3])
    plain, target = evaluation_transform(CONFIG).boxed(image, given)
    tensor, augmented = training_transform(CONFIG, STILL).boxed(image, given)

    assert torch.equal(tensor, plain)
    assert augmented[0].tolist() == [1, 1, 0, 0, 96, 64, 0]
    assert torch.allclose(input_boxes(augmented[None])[0], input_boxes(target[None])[0])


@pytest.mark.parametrize("varied", [{"flip": 1}, {"scale": 0.5, "translate": 0.2}, {"mosaic": 1}])
def test_boxes_go_with_the_pixels_of_an_augmented_image(varied):
    box = [60, 30, 130, 70]
    transform = training_transform(CONFIG, {**STILL, **varied})
    data = rows([picture([box], (200, 100))] * 8, [label(box)] * 8)
    images, targets = next(iter(detection_loader(data, transform, 8, epoch=0)))
    for image, target in zip(images, targets, strict=True):
        objects = target[1:][target[1:, 4] >= 0]
        for x1, y1, x2, y2 in objects[:, :4].round().int().tolist():
            assert (image[0, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] > 0.6).all()
        for x1, y1, x2, y2 in objects[:, :4].round().int().tolist():
            image[:, max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = 0
        assert (image[0] > 0.6).sum() <= 0.02 * image[0].numel()  # slivers that are no objects any more


def test_an_object_of_which_a_tenth_is_left_in_view_is_learnt_and_one_with_less_is_not():
    transform, side, kept = training_transform(CONFIG, {**STILL, "translate": 1.0}), 60, []
    for seed in range(200):
        torch.manual_seed(seed)
        kept += transform.boxed(Image.new("RGB", (96, 64)), label([0, 0, side, side]))[1][1:, 6].tolist()
    assert 0.1 * side**2 <= min(kept) < 0.2 * side**2
    assert 20 < len(kept) < 180


def rows(images, labels):
    features = {"image": datasets.Image(), "label": label_features(datasets.ClassLabel(num_classes=10))}
    data = datasets.Dataset.from_dict({"image": images, "label": labels}, datasets.Features(features))
    return dataset(data, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_depend_neither_on_workers_nor_on_what_was_drawn_before(workers):
    data, transform = dataset("digit_scenes", "train", limit=24), training_transform(CONFIG, {})
    alone = list(detection_loader(data, transform, 8, epoch=3))
    torch.rand(5)
    again = list(detection_loader(data, transform, 8, epoch=3, workers=workers))

    for (images, targets), (others, their_targets) in zip(alone, again, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(targets, their_targets)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("batch", "processes"), [(8, 4), (6, 2), (6, 6)])
def test_mosaics_are_the_same_whoever_makes_them(batch, processes, streamed):
    """Also where a process's share is no whole group of four, and where the batch isn't."""
    drawn = dataset("digit_scenes", "train", limit=12)
    data = Stream(datasets.IterableDataset.from_generator(lambda: iter(drawn)), 12, (12,)) if streamed else drawn
    transform, plain = (training_transform(CONFIG, {"mosaic": each}) for each in (1, 0))
    whole, alone = (next(iter(detection_loader(data, how, batch, epoch=0))) for how in (transform, plain))
    loaders = [
        prepare_data_loader(detection_loader(data, transform, batch, epoch=0), None, processes, rank, True)
        for rank in range(processes)
    ]
    images, targets = zip(*(next(iter(loader)) for loader in loaders), strict=True)

    assert torch.equal(torch.cat(images), whole[0])
    assert torch.equal(collated([each for share in targets for each in share]), whole[1])
    assert not any(torch.equal(*pair) for pair in zip(whole[0], alone[0], strict=True))


def test_a_mosaic_is_of_images_of_its_group_alone():
    plain = [(torch.full((1, 8, 8), float(value)), torch.tensor([[1, 1, 0, 0, 8, 8, 5.0]])) for value in range(4)]

    assert mosaic(plain, 1)[0].round().unique().tolist() == [0, 1, 2, 3]
    assert mosaic(plain[:2], 1)[0].round().unique().tolist() == [0, 1]
    groups = [Mixed(4, mosaic).group(position, 6) for position in (0, 3, 5, 6, 11)]
    assert groups == [range(4), range(4), range(4, 6), range(6, 10), range(10, 12)]


@pytest.mark.parametrize(("how", "begun"), [({"epochs": 4}, 4), ({"epochs": 9, "steps": 5}, 3)])
def test_the_last_epochs_have_no_mosaics(how, begun):
    """Two batches are an epoch; of five, three epochs begin."""
    data = dataset("digit_scenes", "train", limit=8)
    transforms = [training_transform(CONFIG, each) for each in ({"close_mosaic": 2}, {}, {"mosaic": 0})]
    schedule, machine = Schedule(batch_size=4, **how), Machine(workers=0)
    closing, always, never = (epochs(DETECTION, data, each, schedule, 0, machine) for each in transforms)
    for number in range(begun):
        expected = always if number < begun - 2 else never
        assert torch.equal(next(iter(closing(number)))[0], next(iter(expected(number)))[0])
    assert not torch.equal(next(iter(always(0)))[0], next(iter(never(0)))[0])


def test_streams_have_the_same_targets():
    data, transform = dataset("digit_scenes", "test", limit=12), evaluation_transform(CONFIG)
    rendered = rows(data[:]["image"], data[:]["label"])
    stream = dataset(rendered.to_iterable_dataset(num_shards=2), "test")
    expected = list(detection_loader(rendered, transform, 4))
    for opened in (stream, Stream(stream, 12)):
        found = list(detection_loader(opened, transform, 4))
        assert all(
            torch.equal(a, b) for one, two in zip(expected, found, strict=True) for a, b in zip(one, two, strict=True)
        )
    training = list(detection_loader(Stream(stream, 12), training_transform(CONFIG, {}), 4, epoch=0))
    assert [list(images.shape) for images, _ in training] == [[4, 3, 64, 96]] * 3


def test_the_identity_of_boxes_depends_neither_on_the_batch_nor_on_the_model_nor_on_their_order():
    data = dataset("digit_scenes", "test", limit=6)

    def digests(data, size, batch):
        transform = Identified(evaluation_transform({**CONFIG, "input_size": size}))
        loader = detection_loader(data, transform, batch)
        return torch.cat([with_targets(digests, targets) for (_, digests), targets in loader])

    turned = [{key: part[::-1] for key, part in label.items()} for label in data[:]["label"]]
    moved = [{**label, "boxes": [[0, 0, 9, 9], *label["boxes"][1:]]} for label in data[:]["label"]]
    first = digests(data, [3, 64, 96], 6)
    assert torch.equal(first, digests(data, [3, 32, 32], 1))
    assert torch.equal(first, digests(rows(data[:]["image"], turned), [3, 64, 96], 4))
    assert not (first == digests(rows(data[:]["image"], moved), [3, 64, 96], 6)).all(1).any()
