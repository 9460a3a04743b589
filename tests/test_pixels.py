"""Decoding: upright, of the model's mode, scaled and never clipped; and what can't be decoded, by name."""

import io

import numpy as np
import pytest
from datasets import Dataset
from photographs import CFG, NAMES, jpegs, write_classes
from PIL import Image

from zoo.cli import main
from zoo.errors import DataError
from zoo.tasks.classification.transforms import evaluation_transform
from zoo.tasks.datasets import dataset
from zoo.tasks.loader import loader
from zoo.tasks.pixels import decode

RAMP = np.linspace(0, 255, 256).round().astype(np.uint8).reshape(16, 16)
TURNED = {  # EXIF's orientation → how the stored pixels become what was seen
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.T,
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).T,
    8: np.rot90,
}


def stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_image_stands_as_its_exif_orientation_says(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = RAMP[:9]
    found = decode(stored(Image.fromarray(pixels), kind, exif=exif), "L")

    np.testing.assert_array_equal(found, TURNED[orientation](pixels))
    np.testing.assert_array_equal(decode(found, "L"), found)  # once is enough


def test_a_damaged_exif_note_beside_whole_pixels_does_no_harm():
    each = stored(Image.fromarray(RAMP), "PNG", exif=b"Exif\0\0nonsense")

    np.testing.assert_array_equal(decode(each, "L"), RAMP)


WIDE = {
    "16 bits in PNG": (RAMP.astype(np.uint16) * 257, "PNG"),
    "16 bits in TIFF": (RAMP.astype(np.uint16) * 257, "TIFF"),
    "16 bits, big-endian": (RAMP.astype(">u2") * 257, "TIFF"),
    "int32 of 16 bits": (RAMP.astype(np.int32) * 257, "TIFF"),
    "int32 of 8 bits": (RAMP.astype(np.int32), "TIFF"),
    "int32 of its own range": (RAMP.astype(np.int32) * 100_000 - 7, "TIFF"),
    "float of 0..1": (RAMP.astype(np.float32) / 255, "TIFF"),
    "float of 0..255": (RAMP.astype(np.float32), "TIFF"),
    "float of 0..65535": (RAMP.astype(np.float32) * 257, "TIFF"),
    "float of its own range": (RAMP.astype(np.float32) * 3 - 100, "TIFF"),
}


@pytest.mark.parametrize("name", WIDE)
def test_more_than_eight_bits_are_scaled_and_never_clipped(name):
    pixels, kind = WIDE[name]
    found = decode(stored(Image.fromarray(pixels), kind), "L")

    np.testing.assert_array_equal(found, RAMP)
    np.testing.assert_array_equal(np.asarray(decode(stored(Image.fromarray(pixels), kind)))[..., 2], RAMP)


def test_a_dark_image_of_sixteen_bits_stays_dark():
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))

    assert np.unique(decode(stored(dark, "PNG"), "L")).tolist() == [1]  # 200 / 257
    assert np.unique(decode(Image.fromarray(np.full((4, 4), 128, np.uint16)), "L")).tolist() == [0]


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="a value isn't finite"):
        decode(stored(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def _modes():
    red, clear = Image.new("RGB", (4, 4), (200, 30, 10)), Image.new("RGBA", (4, 4), (200, 30, 10, 0))
    palette = red.quantize(4)
    see_through = palette.copy()
    see_through.info["transparency"] = bytes([0] * 4)
    return {
        "RGBA": (clear, (200, 30, 10)),
        "LA": (Image.new("LA", (4, 4), (99, 0)), (99, 99, 99)),
        "palette": (palette, (200, 30, 10)),
        "palette with transparency": (see_through, (200, 30, 10)),
        "bits": (Image.new("1", (4, 4), 1), (255, 255, 255)),
        "CMYK": (Image.new("CMYK", (4, 4), (55, 225, 245, 0)), (200, 30, 10)),
    }


@pytest.mark.parametrize("name", _modes())
def test_alpha_is_dropped_and_palettes_and_cmyk_become_colours(name):
    image, colour = _modes()[name]
    grey = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])

    assert decode(image).getpixel((0, 0)) == colour
    assert abs(decode(image, "L").getpixel((0, 0)) - grey) <= 1


DAMAGED = {
    "truncated": (jpegs(1)[0][:700], "image file is truncated"),
    "empty": (b"", "it is empty"),
    "a page": (b"<html>not found</html>", "its bytes are of no known format"),
    "a bomb": (stored(Image.new("1", (20_000, 20_000)), "PNG"), "could be decompression bomb"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_cannot_be_decoded_is_an_error_of_one_line_that_names_it(name, tmp_path):
    content, reason = DAMAGED[name]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    row = {"bytes": content, "path": "row 7 (7.jpg)"}
    for form, named in ((path, str(path)), (str(path), str(path)), (content, "an image of "), (row, "row 7 (7.jpg)")):
        with pytest.raises(DataError, match=reason) as caught:
            decode(form)
        assert str(caught.value).startswith(named)
        assert "\n" not in str(caught.value)


def test_what_is_no_image_is_said():
    with pytest.raises(DataError, match=r"^5: .* expected a PIL image, a path, bytes or a row's value, found int$"):
        decode(5)
    with pytest.raises(DataError, match=r"^/none/x\.jpg: no image that can be decoded: No such file or directory$"):
        decode("/none/x.jpg")


@pytest.fixture
def spoiled(tmp_path):
    """A folder of 64 photographs, of which numbers 3 and 40 of the test split can't be decoded."""
    folder = write_classes(tmp_path / "photographs")
    for number, label in ((3, 0), (40, 1)):
        path = folder / "test" / NAMES[label] / f"{number:02d}.jpg"
        path.write_bytes(path.read_bytes()[:700])
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_names_the_file_in_one_line(workers, spoiled):
    with pytest.raises(DataError) as caught:
        list(loader(dataset(str(spoiled), "test"), evaluation_transform(CFG), 16, workers=workers))

    named = f"{spoiled}/test/meadow/03.jpg: no image that can be decoded: image file is truncated"
    assert str(caught.value).startswith(named)
    assert str(caught.value).endswith("; --skip-damaged leaves such images out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_loader_names_the_row(streamed):
    rows = Dataset.from_dict({"image": [{"bytes": each, "path": None} for each in (*jpegs(2), b"x")], "label": [0] * 3})
    data = dataset(rows.to_iterable_dataset() if streamed else rows, "test")
    with pytest.raises(DataError, match=r"^row 2: no image that can be decoded"):
        list(loader(data, evaluation_transform(CFG), 2))


def test_damaged_images_are_skipped_counted_and_listed_and_the_others_keep_their_order(spoiled, caplog):
    data = dataset(str(spoiled), "test", skip_damaged=True)

    assert "2 of 64 images can't be decoded and are left out" in caplog.text
    assert all(f"{name}.jpg" in caplog.text for name in ("meadow/03", "sea/40"))
    kept = [
        image["path"] for image in dataset(str(spoiled), "test")["image"] if image["path"][-6:-4] not in ("03", "40")
    ]
    assert [image["path"] for image in data["image"]] == kept
    orders = [
        [
            label
            for _, labels in loader(data, evaluation_transform(CFG), 8, epoch=1, workers=workers)
            for label in labels
        ]
        for workers in (0, 2)
    ]
    assert orders[0] == orders[1]


def test_damaged_images_of_a_stream_are_skipped_and_listed(caplog):
    stored_rows = [{"bytes": each, "path": None} for each in (*jpegs(3), b"x", *jpegs(2))]
    rows = Dataset.from_dict({"image": stored_rows, "label": range(6)})
    data = dataset(rows.to_iterable_dataset(num_shards=2), "test", skip_damaged=True)

    assert [row["label"] for row in data] == [0, 1, 2, 4, 5]
    assert "no image that can be decoded" in caplog.text


def test_the_command_line_says_it_in_a_line_and_goes_on_without_them_when_asked(spoiled, capsys):
    verify = ["verify", "digits_cnn", "--data", str(spoiled), "--labels", str(spoiled.parent / "labels.json")]
    (spoiled.parent / "labels.json").write_text('{"meadow": "3", "sea": 7}')
    with pytest.raises(SystemExit) as end:
        main(verify)
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {spoiled}/test/meadow/03.jpg: no image")

    with pytest.raises(SystemExit) as end:
        main([*verify, "--skip-damaged", "--json"])
    assert end.value.code == 1  # these aren't the images that the claim is of
    out, err = capsys.readouterr()
    assert '"images": 62' in out
    assert "no claim on images was judged (other images)" in err
    assert "2 of 64 images can't be decoded and are left out" in err
    assert "has 2 of the model's 10 classes" in err
