"""Integer models on processors that this one isn't: onnxruntime under qemu, with and without what makes it exact.

`eval "$(scripts/emulators build/emulators)"` fetches what it needs, without root: `qemu-x86_64`, and for aarch64 the
folder `ZOO_AARCH64`, a root with usr/bin/python3 and, in `site`, numpy and onnxruntime. Else it is skipped.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper

import zoo
from zoo.onnx.integer import integer_program

RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"images": numpy.load(sys.argv[2])})[0])
"""


def haswell():
    """AVX2, which adds products of bytes in 16 bits, two at a time."""
    if (qemu := shutil.which("qemu-x86_64")) is None:
        pytest.skip("qemu-x86_64 isn't here: apt install qemu-user")
    return [qemu, "-cpu", "Haswell", sys.executable]


def aarch64():
    root = os.environ.get("ZOO_AARCH64")
    if (qemu := shutil.which("qemu-aarch64")) is None or root is None:
        pytest.skip("no qemu-aarch64, or ZOO_AARCH64 names no root of that architecture")
    variables = {"PYTHONHOME": f"{root}/usr", "PYTHONPATH": f"{root}/site"}
    told = [part for key, value in variables.items() for part in ("-E", f"{key}={value}")]
    return [qemu, "-cpu", "max", "-L", root, *told, f"{root}/usr/bin/python3"]


@pytest.fixture(scope="module")
def model():
    return zoo.load("digits_cnn_int8")


@pytest.fixture(scope="module")
def images():
    noise = torch.randint(0, 256, (4, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noise[2:] = (noise[2:] > 127).to(torch.uint8) * 255
    return noise


def computed(program, images, command, folder):
    """What onnxruntime gives under a command."""
    (folder / "net.onnx").write_bytes(program.SerializeToString())
    np.save(folder / "images.npy", images.numpy())
    files = [str(folder / name) for name in ("net.onnx", "images.npy", "outputs.npy")]
    subprocess.run([*command, "-c", RUN, *files], check=True, capture_output=True, timeout=1200)
    return torch.from_numpy(np.load(files[-1]))


def doubled(program):
    """The same program with weights of up to 127, a bit finer."""
    held = {each.name: each for each in program.graph.initializer}
    for node in program.graph.node:
        if node.op_type == "QLinearConv":
            weight, scale, bias = (held[node.input[place]] for place in (3, 4, 8))
            finer = (numpy_helper.to_array(weight).astype(int) * 2).clip(-127, 127).astype(np.int8)
            weight.CopyFrom(numpy_helper.from_array(finer, weight.name))
            scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 2, scale.name))
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 2, bias.name))
    return program


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("processor", [haswell, aarch64])
def test_another_processor_gives_the_same_bytes(processor, model, images, tmp_path):
    found = computed(integer_program(model, model.zoo_entry.graph), images, processor(), tmp_path)

    assert torch.equal(found, model(images))


@pytest.mark.timeout(3000)
def test_weights_of_up_to_127_are_summed_up_otherwise_where_pairs_saturate(model, images, tmp_path):
    """The test above sees what the certificate excludes."""
    command, program = haswell(), doubled(integer_program(model, model.zoo_entry.graph))
    here = computed(program, images, [sys.executable], Path(tmp_path))

    assert not torch.equal(computed(program, images, command, tmp_path), here)
