"""A fresh process is as quick as its imports: garbage isn't looked for where there is none."""

import gc
import subprocess
import sys

import pytest

import zoo
from zoo.cli import main


@pytest.fixture
def collecting():
    """A function that turns the collector on or off until the test ends."""
    was = gc.isenabled()
    yield lambda on: gc.enable() if on else gc.disable()
    if was:
        gc.enable()


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("code", ["import gc; found = gc.isenabled()", "raise OSError('half imported')"])
def test_a_verb_is_imported_without_collecting_and_the_collector_is_left_as_it_was(
    tmp_path, monkeypatch, collecting, on, code
):
    (tmp_path / "heavy_room.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(zoo._ROOM, "found", "heavy_room")
    monkeypatch.delitem(sys.modules, "heavy_room", raising=False)
    collecting(on)

    if code.startswith("raise"):
        with pytest.raises(OSError, match="half imported"):
            _ = zoo.found
    else:
        assert zoo.found is False
    assert (gc.isenabled(), gc.get_freeze_count()) == (on, 0)


def test_the_command_line_leaves_the_collector_of_its_caller_alone(capsys):
    before = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()
    for arguments in (["list"], ["show", "nothing"], ["--version"]):
        with pytest.raises(SystemExit):
            main(arguments)

    assert (gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()) == before


def test_the_command_line_ends_without_going_through_what_is_left():
    code = (
        "import atexit, gc, sys, zoo.cli\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"  # what is registered first comes last
        "zoo.cli.main(['--version'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.splitlines()[-1] == "True"
