"""Folders that ask for much: a name, what writes the folder, and through which doors it is read.

To add one, write its row of FOLDERS. What is read is a model of `zoo/catalog/embedded` with something in it changed.
"""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import zoo
from zoo import catalog
from zoo.cli.listing import show
from zoo.files import sha256
from zoo.structure.base import fingerprint, skeleton
from zoo.structure.tensors import computable, tensors_of
from zoo.verbs.converting import converted

CHECKPOINTS = Path(__file__).parents[2] / "tests" / "data" / "torch_dag"
DTYPES = {torch.float32: "F32", torch.int64: "I64"}
HUGE = 4_000 * "9"


def _shown(folder: Path) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        assert show.callback is not None
        show.callback(str(folder), False)


def _transformed(folder: Path) -> None:
    model = zoo.load(folder)
    with torch.no_grad():
        zoo.transform(model)(Image.new("RGB", (64, 48)))


DOORS: Mapping[str, Callable[[Path], object]] = {
    "load": zoo.load,
    "create": zoo.create,
    "show": _shown,
    "verify": partial(zoo.verify, structure_only=True),
    "verify on digits": partial(zoo.verify, images=2, workers=0),
    "verify as claimed": partial(zoo.verify, workers=0),
    "transform": _transformed,
    "convert": lambda folder: converted(folder, "net"),
}
FOUR = ("load", "create", "show", "verify")


def doors(folder: Path) -> tuple[str, ...]:
    """Those that a folder is read through, of a repository or of a checkpoint."""
    return ("convert",) if (folder / "config.dict.json").exists() else (*FOUR, "transform")


# What writes a folder.

Write = Callable[[Path], None]


def valid(folder: Path, name: str = "digits_cnn_pruned_50") -> Any:
    """A copy of an embedded model; returns its config."""
    shutil.copytree(catalog.EMBEDDED / name, folder)
    return json.loads((folder / "config.json").read_text())


def put(file: Path, data: Any) -> None:
    """Write JSON."""
    file.write_text(json.dumps(data))


def config(change: Callable[[Any], object]) -> Write:
    """A model whose config.json is changed."""

    def write(folder: Path) -> None:
        data = valid(folder)
        change(data)
        put(folder / "config.json", data)

    return write


def results(**data: Any) -> Write:
    """A model whose results say this of their data."""

    def write(folder: Path) -> None:
        valid(folder)
        said = json.loads((folder / "results.json").read_text())
        put(folder / "results.json", {**said, "data": {**said["data"], **data}})

    return write


def text(file: str, written: Callable[[], str | bytes]) -> Write:
    """A model of which a file says this."""

    def write(folder: Path) -> None:
        valid(folder)
        said = written()
        (folder / file).write_bytes(said if isinstance(said, bytes) else said.encode())

    return write


def base(id: str, honest: bool = False, input: tuple[int, int, int] = (3, 224, 224), **args: Any) -> Write:
    """A dense base; an honest one with its own fingerprint, and with weights that take no room on the disk."""

    def write(folder: Path) -> None:
        data, dense = valid(folder), zoo.Base(f"timm/{id}", args)
        data.pop("label_names")
        data["pretrained_cfg"]["input_size"] = input
        data["num_classes"] = args.get("num_classes", 1000)
        data["zoo"] |= {"base": {"id": dense.id, "args": args}, "plan": [], "fingerprint": {}}
        if honest:
            model = skeleton(dense)
            data["zoo"]["fingerprint"] = fingerprint(model)
            rows, end, computed = {}, 0, computable(model)
            for name, value in tensors_of(model).items():
                if name not in computed:
                    place, end = [end, end + value.nbytes], end + value.nbytes
                    rows[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": place}
            fill(folder / "model.safetensors", json.dumps(rows).encode(), end)
            if end < 2**30:
                data["zoo"]["weights_sha256"] = sha256(folder / "model.safetensors")
        put(folder / "config.json", data)

    return write


def plan(*edits: Any) -> Write:
    """A model with these edits."""
    return config(lambda data: data["zoo"].update(plan=list(edits)))


def graph(nodes: list[dict[str, Any]], inputs: tuple[str, ...] = ("x",)) -> Write:
    """A graph of these nodes, the last of which is the output."""

    def write(folder: Path) -> None:
        data = valid(folder)
        for key in ("plan", "fingerprint"):
            del data["zoo"][key]
        data["zoo"]["graph"] = "graph.json"
        put(folder / "config.json", data)
        put(folder / "graph.json", {"inputs": inputs, "outputs": [nodes[-1]["name"]], "nodes": nodes})

    return write


def weights(head: Callable[[], bytes], bytes_: int = 0) -> Write:
    """A model whose model.safetensors has this head, and so many bytes."""

    def write(folder: Path) -> None:
        valid(folder)
        fill(folder / "model.safetensors", head(), bytes_)

    return write


def fill(file: Path, head: bytes, size: int) -> None:
    """Write a safetensors file whose values are zeros that take no room on the disk."""
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(head)) + head)
        opened.truncate(8 + len(head) + size)


def tensors(count: int, shape: list[int] | None = None) -> bytes:
    """A head of empty tensors."""
    shape = shape or [0]
    rows = (f'"{i}":{{"dtype":"U8","shape":{json.dumps(shape)},"data_offsets":[0,0]}}' for i in range(count))
    return ("{" + ",".join(rows) + "}").encode()


def special(file: str, make: Callable[[Path], object]) -> Write:
    """A model of which a file is no file."""

    def write(folder: Path) -> None:
        valid(folder)
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return write


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def checkpoint(change: Callable[[Any], object], name: str = "convnextv2_atto_tiny_pruned") -> Write:
    """A torch-dag checkpoint whose graph is changed."""

    def write(folder: Path) -> None:
        shutil.copytree(CHECKPOINTS / name, folder)
        data = json.loads((folder / "config.dict.json").read_text())
        change(data)
        put(folder / "config.dict.json", data)

    return write


def _vertices(data: Any) -> None:
    """Very many that do the same as the last one."""
    last = data[str(data["output_index"])]
    number = data["output_index"] + 1
    data |= {str(i): {**last, "name": f"v{i}", "predecessor_indices": [i - 1]} for i in range(number, 50_000)}
    data["output_index"] = 49_999


def _wide_and_deep(data: Any) -> None:
    """Graphs within graphs, eight deep and each with many of the next."""
    inner = {"0": data["0"], "1": {**data["1"], "predecessor_indices": [0]}, "output_index": 1}
    for _ in range(7):
        one = {**data["1"], "is_atomic": False, "module_dict": inner}
        inner = {"0": data["0"], "output_index": 5}
        inner |= {str(i): {**one, "name": f"v{i}", "predecessor_indices": [i - 1]} for i in range(1, 6)}
    data["1"] = {**data["1"], "is_atomic": False, "module_dict": inner}


def relus(count: int) -> list[dict[str, Any]]:
    """A chain."""
    return [{"name": f"r{i}", "op": "relu", "inputs": [f"r{i - 1}" if i else "x"]} for i in range(count)]


CONV = {"in_channels": 1, "out_channels": 1, "kernel_size": 1}
convolutions = [
    {"name": f"c{i}", "op": "conv2d", "inputs": [f"c{i - 1}" if i else "x"], "attributes": CONV} for i in range(9_999)
]
wide = [
    {"name": f"c{i}", "op": "concat", "inputs": ["x" if not i else f"c{i - 1}"] * 400, "attributes": {"dim": 0}}
    for i in range(1_000)
]
parameter = partial(dict, name="p", op="parameter", inputs=[])
doubled = [["layer4.0.conv2"]]
for _ in range(9):
    doubled.append([f"{path}.{i}" for path in doubled[-1] for i in (0, 1)])
nested = ["layer1.0.conv1" + ".0" * i for i in range(400)]
FIT = {"crop_pct": 1e-6, "crop_mode": "squash"}

FOLDERS: Mapping[str, tuple[Write, tuple[str, ...]]] = {
    # A configuration, and what all of them may hold.
    "config.json of 60 MB of names": (text("config.json", lambda: '{"a":[' + '"abcdef",' * 6_600_000 + '1]}'), FOUR),
    "config.json of 60 MB of lists": (text("config.json", lambda: '{"a":[' + "[]," * 20_000_000 + "1]}"), FOUR),
    "config.json of 7 MB of lists": (text("config.json", lambda: '{"a":[' + "[]," * 2_300_000 + "1]}"), FOUR),
    "config.json nested 100,000 deep": (text("config.json", lambda: "[" * 100_000), FOUR),
    "config.json nested 900 deep": (config(lambda c: c.update(a=json.loads("[" * 900 + "]" * 900))), FOUR),
    "config.json of a number of 4,000 digits": (text("config.json", lambda: f'{{"zoo": {HUGE}}}'), FOUR),
    "input_size of numbers of 4,000 digits": (config(lambda c: c["pretrained_cfg"].update(
        input_size=[int(HUGE)] * 3)), (*FOUR, "transform")),
    "schema of 4,000 digits": (config(lambda c: c["zoo"].update(schema=int(HUGE))), FOUR),
    "a name of a megabyte": (config(lambda c: c["zoo"].update(name="n" * 10**6)), FOUR),
    "200,000 label names too few": (config(lambda c: c.update(label_names=["n" * 30] * 200_000)), FOUR),
    "a recipe nested 400 deep": (config(lambda c: c["zoo"]["recipe"].update(
        options={"a": json.loads("[" * 400 + "]" * 400)})), FOUR),
    "results.json of 60 MB": (text("results.json", lambda: '{"a":[' + "[]," * 20_000_000 + "1]}"), ("show", "verify")),
    "results.json of 300,000 figures": (text("results.json", lambda: json.dumps(
        {"name": "a", "measured": {f"f{i}": i for i in range(300_000)}})), ("show", "verify")),
    # Bases.
    "depths of [100,000] x 1,000": (base("convnext_tiny", depths=[100_000] * 1000), FOUR),
    "depths of [100,000] x 1,000 (swin)": (base("swin_tiny_patch4_window7_224", depths=[100_000] * 1000), FOUR),
    "depths of [100,000] x 4 (metaformer)": (base("poolformer_s12", depths=[100_000] * 4), FOUR),
    "depth of 190,000 (vit)": (base("vit_tiny_patch16_224", depth=190_000), FOUR),
    "img_size of 24,000 (maxvit)": (base("maxvit_tiny_tf_224", img_size=24_000), FOUR),
    "img_size of 4,000 (maxvit)": (base("maxvit_tiny_tf_224", img_size=4_000), FOUR),
    "img_size of 24,000 (beit)": (base("beit_base_patch16_224", img_size=24_000), FOUR),
    "window of 2,000 (swin)": (base("swin_tiny_patch4_window7_224", img_size=8_000, window_size=2_000), FOUR),
    "window of 2,000 (swinv2)": (base("swinv2_tiny_window8_256", img_size=8_000, window_size=2_000), FOUR),
    "resolution of 20,000 (levit)": (base("levit_128s", img_size=20_000), FOUR),
    "resolution of 20,000 (efficientformer)": (base("efficientformer_l1", resolution=20_000), FOUR),
    "8e10 parameters": (base("vit_tiny_patch16_224", embed_dim=4_096, depth=400, num_heads=8), FOUR),
    "2e10 parameters": (base("vit_tiny_patch16_224", honest=True, embed_dim=4_096, depth=98, num_heads=8), ("create",)),
    "windows of 4,096 (tiny_vit)": (base("tiny_vit_5m_224", window_sizes=[4_096] * 4), FOUR),
    "windows of 1,000 (tiny_vit)": (base("tiny_vit_5m_224", window_sizes=[1_000] * 4), FOUR),
    "windows of 4,096 (efficientvit)": (base("efficientvit_m0", window_size=[4_096] * 3, img_size=4_096), FOUR),
    "kernels of 4,096 (convit)": (base("convit_tiny", local_up_to_layer=4_096, locality_strength=4_096.0), FOUR),
    "layers of [4,000] x 4": (base("resnet18", layers=[4_000] * 4), FOUR),
    "a table of 127^4 positions (beit)": (base("beit_base_patch16_224", True, (3, 2_032, 2_032), img_size=2_032,
        depth=1, embed_dim=8, num_heads=1, num_classes=0), FOUR),
    "a window of 126 x 126 (swin)": (base("swin_tiny_patch4_window7_224", True, (3, 2_016, 2_016), img_size=2_016,
        window_size=126, depths=[1], embed_dim=8, num_heads=[1], num_classes=0), FOUR),
    "masks of 342,225 windows (swin)": (base("swin_tiny_patch4_window7_224", True, (3, 4_095, 4_095), img_size=4_095,
        patch_size=1, depths=[2], embed_dim=8, num_heads=[1], num_classes=0), FOUR),
    "depth of 1,500 (vit)": (base("vit_tiny_patch16_224", True, depth=1_500, embed_dim=8, num_heads=1, num_classes=0),
        FOUR),
    "arguments of timm's builder": (base("resnet18", pruned=True), FOUR),
    # Plans.
    "2,000 empty edits": (plan(*[{"edit": "narrow"}] * 2_000), FOUR),
    "200,000 empty edits": (plan(*[{"edit": "mask"}] * 200_000), FOUR),
    "100,000 masks of a path": (plan({"edit": "mask", "paths": ["conv1.0"] * 100_000}), FOUR),
    "factors nested 400 deep": (plan({"edit": "factor", "layers": {path: {"rank": 1} for path in nested}}), FOUR),
    "factors of factors, 512 of a layer": (config(lambda c: c["zoo"].update(plan=[
        {"edit": "factor", "layers": {path: {"rank": 48} for path in paths}} for paths in doubled])), FOUR),
    "2,000 edits that narrow nothing": (plan(*[{"edit": "narrow", "widths": {"fc": {}}}] * 2_000), FOUR),
    "a shape of numbers of 4,000 digits (plan)": (plan({"edit": "narrow", "tensors": {"fc.weight": [int(HUGE)] * 2}}),
        FOUR),
    # Graphs.
    "50,000 relus": (graph(relus(50_000)), FOUR),
    "9,999 relus": (graph(relus(9_999)), FOUR),
    "9,999 convolutions": (graph(convolutions), FOUR),
    "1,000 concatenations of 400 each": (graph(wide), FOUR),
    "a shape of numbers of 4,000 digits (graph)": (graph([parameter(attributes={"shape": [int(HUGE)] * 64})]), FOUR),
    "8e10 parameters of a graph": (graph([parameter(attributes={"shape": [200_000, 200_000, 2]})]), FOUR),
    # Weights.
    "a safetensors head of 1,300,000 tensors": (weights(lambda: tensors(1_300_000)), ("load", "verify")),
    "a safetensors head of 90,000,000 blanks": (weights(lambda: b"{" + b" " * 90_000_000 + b"}"), ("load",)),
    "a safetensors shape of 4,000 digits": (weights(lambda: tensors(1).replace(b"[0]", f"[{HUGE}]".encode())),
        ("load",)),
    "a safetensors shape of a million sizes": (weights(lambda: tensors(1, [1] * 1_000_000)), ("load",)),
    # What is no file.
    **{
        f"{file} is a {kind}": (special(file, make), FOUR)
        for file in ("config.json", "model.safetensors", "results.json", "graph.json", "README.md")
        for kind, make in {"FIFO": os.mkfifo, "device": _device, "socket": _socket, "folder": Path.mkdir}.items()
    },
    # Preprocessing.
    "input_size of 200,000": (config(lambda c: c["pretrained_cfg"].update(input_size=[1, 200_000, 200_000])),
        (*FOUR, "transform", "verify on digits")),
    "input_size of 20,000": (config(lambda c: c["pretrained_cfg"].update(input_size=[1, 20_000, 20_000])),
        (*FOUR, "transform", "verify on digits")),
    "crop_pct of 1e-6": (config(lambda c: c["pretrained_cfg"].update(crop_pct=1e-6)), (*FOUR, "transform",
        "verify on digits")),
    "crop_pct of 0": (config(lambda c: c["pretrained_cfg"].update(crop_pct=0)), (*FOUR, "transform")),
    "a std of another length": (config(lambda c: c["pretrained_cfg"].update(std=[0.5] * 3)), ("transform",)),
    "a mean of 1,000,000": (config(lambda c: c["pretrained_cfg"].update(mean=[0.5] * 10**6)), (*FOUR, "transform")),
    # Data that a claim names, and what is printed.
    **{
        f"figures of {spec!r}": (results(dataset=spec), ("verify as claimed", "show"))
        for spec in ("/", "~", "/proc", "../..", "file:///etc", "digit_pairs[:999999999]", "\x1b[2J", "digits[:5][:5]")
    },
    "figures of a name nested 30 deep": (results(dataset=json.loads("[" * 28 + "]" * 28)), ("show", "verify")),
    "200,000 labels that colour the terminal": (results(labels=["\x1b[31m"] * 200_000), ("show", "verify")),
    "a figure that repaints a line": (text("results.json", lambda: json.dumps(
        {"name": "a", "measured": {"x\x1b[1A\r top1 agrees": 1}})), ("show", "verify")),
    "a name that ends code": (config(lambda c: c["zoo"].update(name='a")\n```\n# b')), FOUR),
    "an argument that colours the terminal": (config(lambda c: c["zoo"]["base"]["args"].update({"\x1b[31m": 1})), FOUR),
    # Another project's checkpoints.
    "50,000 vertices": (checkpoint(_vertices), ("convert",)),
    "vertices 5 x 8 deep": (checkpoint(_wide_and_deep), ("convert",)),
    "a checkpoint's graph of 60 MB": (checkpoint(lambda c: c.update(a=[[]] * 15_000_000)), ("convert",)),
}  # fmt: skip
"""Name → what writes the folder, and the doors that it is read through."""
