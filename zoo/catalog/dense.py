"""Dense classifiers of timm, their published accuracy on ImageNet-1k and what they cost; `dense.csv` holds them.

`scripts/timm_results.py` makes the file of timm's own table of results. Accuracy and cost are of one input: that which
timm gives the model, so that what is timed is what was evaluated.
"""

import functools
from pathlib import Path

from msgspec import Struct

FILE = Path(__file__).with_suffix(".csv")
DATA = "ILSVRC/imagenet-1k"  # which every accuracy here is of
HEAD = """\
# top1 of https://github.com/huggingface/pytorch-image-models/blob/{commit}/results/results-imagenet.csv
# (Apache-2.0, Ross Wightman and others), read on {date}; the rest was counted with timm {version}.
id,top1,side,params,macs,layers,outputs,license
"""


class Dense(Struct, frozen=True):
    """One dense classifier.

    Args:
        id: architecture and tag of its weights, as timm spells them.
        top1: accuracy on ImageNet's validation images, 0..1, as timm reports it.
        side: of the square images, in pixels.
        params: parameters.
        macs: multiply-accumulates of one image.
        layers: calls, for one image, of modules that hold no others.
        outputs: elements that these return.
        license: of the weights, as timm names it; empty where it doesn't.
    """

    id: str
    top1: float
    side: int
    params: int
    macs: int
    layers: int
    outputs: int
    license: str

    @property
    def architecture(self) -> str:
        """The id without its tag."""
        return self.id.partition(".")[0]


@functools.cache
def dense() -> tuple[Dense, ...]:
    """All of them, from the most accurate on."""
    lines = FILE.read_text().splitlines()
    rows = (line.split(",") for line in lines[HEAD.count("\n") :])
    return tuple(
        Dense(id, float(top1), int(side), int(params), int(macs), int(layers), int(outputs), license)
        for id, top1, side, params, macs, layers, outputs, license in rows
    )
