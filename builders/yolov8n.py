"""YOLOv8 nano from random weights, and pruned to 73, 59 and 43 % of its macs, taught by itself.

    accelerate launch -m builders yolov8n --data /path/to/coco --precision bf16 --channels-last

The folder is COCO's own: images beside `annotations/instances_train2017.json` and `instances_val2017.json`. No weights
of others are in it, so what comes out is under this project's licence.

Cost: GPU hours 7 for the dense one, 2 to 3 for each other, 15 in all, estimated, as none was run: its macs at 30 TMACs
a second, assumed of one A100 80 GB in bf16.

Should reach the mAP50-95 that the source reports of COCO's validation images for the same budgets, where the published
dense one has 37.3 %:

    yolov8n_own_pruned_73              34.9 %
    yolov8n_own_pruned_59              33.3 %
    yolov8n_own_pruned_43              29.9 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the four models, the dense one first."""
    own = [entry for entry in family.entries("yolov8n") if entry.project == "zoo"]
    return family.build(sorted(own, key=lambda entry: entry.recipe.method is not None), run)
