"""Valid folders of which a part is anything: JSON with a part replaced, text and bytes with some changed."""

import copy
import json
import shutil
import struct
from pathlib import Path

from hypothesis import strategies as st

import zoo
from zoo import catalog
from zoo.files import sha256

CHECKPOINTS = Path(__file__).parent / "data" / "torch_dag"
NAMES = """
timm/resnet18 timm/vit_tiny_patch16_224 timm/maxvit_tiny_tf_224 timm/tiny_vit_5m_224 zoo/cifar_resnet20 digits_cnn
img_size depth embed_dim num_classes in_chans layers act_layer norm_layer patch_size window_size pruned global_pool
drop_path_rate channels stem_type input_size mean std crop_pct first_conv classifier label_names plan graph fingerprint
narrow factor mask drop swap identity conv1.0 fc blocks.0.attn.qkv layer1.0 gelu relu conv2d parameter buffer reshape
item concat aten.outer x $0 batch inf F32 U8 I64 weight all __metadata__ ../.. / . Basic 9
"""
WORDS = (*NAMES.split(), "", "\ud800", "\x1b[2J", "a\nb", "n" * 2000)
SIZES = (-1, 0, 1, 2, 3, 7, 64, 255, 1000, 4096, 4097, 10**5, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, 1e-9, 0.5, 1e308)
numbers = st.sampled_from(SIZES) | st.integers() | st.floats()
plain = st.none() | st.booleans() | numbers | st.sampled_from(WORDS) | st.text(max_size=5)
keys = st.sampled_from(WORDS) | st.text(max_size=5)
anything = st.recursive(plain, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=3), max_leaves=5)
anything |= st.sampled_from(([[]] * 40, [0] * 70, [1] * 5000)) | st.lists(numbers, max_size=4)


@st.composite
def damaged(draw, value, more=anything):
    """A value of which a part is anything, is gone, or is there once more."""
    names = sorted(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not names or draw(st.integers(0, 6)) == 0:
        return draw(more)
    name, changed = draw(st.sampled_from(names)), copy.copy(value)
    match draw(st.integers(0, 12)):
        case 0:
            del changed[name]
        case 1 if isinstance(value, dict):
            changed[draw(keys)] = value[name]
        case 1 | 2 if isinstance(value, list):
            changed.insert(draw(st.sampled_from(names)), value[name])
        case 3:
            changed[name] = value[draw(st.sampled_from(names))]
        case _:
            changed[name] = draw(damaged(value[name], more))
    return changed


@st.composite
def changed_json(draw, data):
    """JSON of which one part or several are anything."""
    value = json.loads(data)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        value = draw(damaged(value))
    return json.dumps(value).encode()


@st.composite
def flipped(draw, data):
    """Bytes of which some are others, lost or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(data))), draw(st.sampled_from((1, 1, 2, 8, 100)))
        new = draw(
            st.sampled_from((b"", data[at : at + length] * 2, b"\xff", b"\0", b"[", b"9" * 30, b"{}", b'"', b"- &a *a"))
        )
        data = data[:at] + new + data[at + length :]
    return data


def valid_folders(place):
    """A pruned CNN, a factored transformer, converted graphs, a checkpoint and what timm saves: name → folder."""
    folders = {name: catalog.EMBEDDED / name for name in ("digits_cnn_pruned_50", "digits_vit_lowrank_50")}
    for name in ("convnextv2_atto_tiny_pruned", "beit_tiny_pruned"):
        folders[name] = zoo.convert(CHECKPOINTS / name, place / name, size=64)
    folders["checkpoint"] = CHECKPOINTS / "convnextv2_atto_tiny_pruned"
    config = json.loads((folders["digits_cnn_pruned_50"] / "config.json").read_text())
    folders["timm"] = place / "timm"
    shutil.copytree(catalog.EMBEDDED / "digits_cnn", folders["timm"])
    timms = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": config["pretrained_cfg"]}
    timms["model_args"] = config["zoo"]["base"]["args"]
    (folders["timm"] / "config.json").write_text(json.dumps(timms))
    return folders


@st.composite
def mutations(draw, folders):
    """A folder's name and file → bytes of those that are changed; hashes of changed weights are as they say."""
    name = draw(st.sampled_from(sorted(folders)))
    folder, files = folders[name], {}
    names = sorted(each.name for each in folder.iterdir())
    for file in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        data = (folder / file).read_bytes()
        if file.endswith(".json") and draw(st.integers(0, 5)):
            files[file] = draw(changed_json(data))
        elif file.endswith(".safetensors") and draw(st.integers(0, 5)):
            length = struct.unpack("<Q", data[:8])[0]
            head = draw(changed_json(data[8 : 8 + length]))
            files[file] = struct.pack("<Q", len(head)) + head + data[8 + length :]
        else:
            files[file] = draw(flipped(data))
    return name, files


def written(folder, place, files):
    """A copy of a folder with these files."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    for name, data in files.items():
        (place / name).write_bytes(data)
    if "model.safetensors" in files and "config.json" not in files and b'"zoo"' in (place / "config.json").read_bytes():
        config = json.loads((place / "config.json").read_text())
        config["zoo"]["weights_sha256"] = sha256(place / "model.safetensors")
        (place / "config.json").write_text(json.dumps(config))
    return place
