"""A fresh process is as quick as its imports: garbage isn't looked for where there is none."""

import gc
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

import zoo
from zoo.cli import main
from zoo.hub.repository import write_repository
from zoo.structure.description import Description, configure_
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import graph_module
from zoo.structure.graph.tracing import export
from zoo.structure.tensors import assign_


@pytest.fixture
def collecting():
    """A function that turns the collector on or off until the test ends."""
    was = gc.isenabled()
    gc.unfreeze()  # what the collection of tests froze
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
    gc.unfreeze()
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


def test_a_graph_is_loaded_and_run_without_the_libraries_that_bases_come_from(tmp_path):
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1))).eval()
    program = export(model, torch.randn(2, 3, 8, 8))
    graph, tensors = lift(program, program.state_dict)
    lifted = assign_(graph_module(graph), tensors, "lifted")
    configure_(lifted, {"input_size": (3, 8, 8)})
    write_repository(tmp_path / "net", lifted, Description("net", None, graph=graph), {})
    code = (
        "import sys, torch, zoo\n"
        "model = zoo.load(sys.argv[1])\n"
        "print(model(torch.ones(1, 3, 8, 8)).sum().item())\n"
        "print([name for name in ('timm', 'torchvision', 'torch._dynamo', 'sympy', 'triton') if name in sys.modules])"
    )

    arguments = [sys.executable, "-c", code, tmp_path / "net"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)

    assert run.stdout.splitlines() == [str(model(torch.ones(1, 3, 8, 8)).sum().item()), "[]"]
