"""What users get: the wheel alone, unpacked, away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parent.parent
JOURNEY = """
import sys
from pathlib import Path
import torch, zoo

assert Path(zoo.__file__).is_relative_to(sys.argv[1]), zoo.__file__
here = Path.cwd()
model = zoo.load("digits_cnn_pruned_25")
zoo.save(model, here / "saved")
zoo.push(here / "saved", here / "hub" / "model")
again = zoo.load(here / "hub" / "model")
images = torch.randn(3, 1, 32, 32)
assert torch.equal(model(images), again(images))
assert zoo.verify(here / "hub" / "model", structure_only=True).passed
assert len(zoo.names(all=True)) > 100
small = ["digits_cnn_pruned_25", "digits_cnn_pruned_25_int8", "digits_vit_pruned_25"]
assert zoo.names(max_macs=1e6) == small  # by what was measured
print(*sorted(path.name for path in (here / "hub" / "model").iterdir()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def contents(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(unpacked, folder, *arguments):
    """Run Python in another folder, with the wheel before everything else on the path."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.parametrize(
    "pattern",
    [
        "**/*.py",
        "**/*.j2",
        "**/*.toml",
        "**/*.csv",
        "py.typed",
        "catalog/embedded/*/*",
        "pages/browse/*.*",
        "pages/browse/vendor/*",
    ],
)
def test_everything_that_the_package_needs_is_in_the_wheel(contents, pattern):
    files = [path for path in (ROOT / "zoo").glob(pattern) if path.is_file() and ".work" not in str(path)]

    assert files
    assert {path.relative_to(ROOT).as_posix() for path in files} - contents == set()


def test_nothing_else_is_in_the_wheel(contents):
    assert {name.partition("/")[0].partition("-")[0] for name in contents} == {"zoo", "compressed_zoo"}
    assert [name for name in contents if name.endswith(".pyc") or "test" in Path(name).name] == []


def test_the_wheel_brings_the_licence_and_the_command(wheel, contents):
    name = wheel.name.removesuffix("-py3-none-any.whl")

    assert f"{name}.dist-info/licenses/LICENSE" in contents
    assert "zoo = zoo.cli:main" in zipfile.ZipFile(wheel).read(f"{name}.dist-info/entry_points.txt").decode()


def test_a_model_can_be_loaded_saved_pushed_and_loaded_back(unpacked, tmp_path):
    journey = run(unpacked, tmp_path, "-c", JOURNEY, str(unpacked))

    assert journey.returncode == 0, journey.stderr
    assert journey.stdout.split() == ["README.md", "config.json", "model.safetensors", "results.json", "widths.png"]


def test_the_command_line_runs_from_the_wheel(unpacked, tmp_path):
    listing = run(unpacked, tmp_path, "-m", "zoo", "list", "--json")

    assert listing.returncode == 0
    assert '"digits_vit_pruned_25"' in listing.stdout
