"""Make zoo/catalog/dense.csv of timm's table of results.

    python scripts/timm_results.py results-imagenet.csv COMMIT DATE

The table is results/results-imagenet.csv of huggingface/pytorch-image-models (Apache-2.0), of which model, img_size,
top1, top1_err and param_count are read. A row is kept where it is of the input that timm gives the model, so that what
is timed is what was evaluated; where it adds up (top1 + top1_err = 100); and where the model that timm builds here has
as many parameters. How many aren't is printed, by reason. What each costs is counted here, on the meta device.
"""

import csv
import sys
from collections import Counter

import timm
from torch import Tensor, nn

from zoo.catalog.dense import FILE, HEAD
from zoo.catalog.entry import Base
from zoo.errors import ZooError
from zoo.measurement.macs import forward_on_meta, measure
from zoo.structure.base import skeleton

CLOSE = 0.0101  # of millions of parameters, which the table gives in hundredths


def work(model):
    """Calls of a model's modules that hold no others, but nn.Identity's, and the elements that they return."""
    returned = []

    def counted(module, given, result):
        parts = result if isinstance(result, tuple | list) else [result]
        returned.append(sum(part.numel() for part in parts if isinstance(part, Tensor)))

    leaves = [each for each in model.modules() if not [*each.children()] and not isinstance(each, nn.Identity)]
    hooks = [leaf.register_forward_hook(counted) for leaf in leaves]
    try:
        forward_on_meta(model)
    finally:
        for hook in hooks:
            hook.remove()
    return len(returned), sum(returned)


def counted(name):
    """Parameters, macs, layers and outputs of one of timm's models."""
    model = skeleton(Base(f"timm/{name}")).eval()
    counts = measure(model)
    return counts.params, counts.macs, *work(model)


def why_not(row, config):
    """Why a row of the table is left out before anything is counted; empty where it isn't."""
    if abs(float(row["top1"]) + float(row["top1_err"]) - 100) > 1e-6:
        return "doesn't add up"
    if config is None:
        return "no longer in timm"
    if int(row["img_size"]) != config.input_size[-1]:
        return "of another input than the model's own"
    return "of other classes than ImageNet-1k's" if config.num_classes != 1000 else ""


def rows(table, left):
    """Rows of dense.csv; `left` counts what is left out."""
    configs = {name: timm.get_pretrained_cfg(name) for name in timm.list_models(pretrained=True)}
    costs = {}
    for row in table:
        name, side = row["model"], row["img_size"]
        config, structure = configs.get(name), (name.partition(".")[0], side)
        reason = why_not(row, config)
        if not reason and structure not in costs:
            try:
                costs[structure] = counted(name)
            except ZooError as error:
                costs[structure] = None
                print(name, error, file=sys.stderr)
        if not reason and costs[structure] is None:
            reason = "can't be counted"
        elif not reason and abs(costs[structure][0] / 1e6 - float(row["param_count"].replace(",", ""))) > CLOSE:
            reason = "has other parameters here"
            print(name, row["param_count"], costs[structure][0], file=sys.stderr)
        if reason:
            left[reason] += 1
        else:
            yield [name, f"{float(row['top1']) / 100:.5f}", side, *costs[structure], config.license or ""]


def main(source, commit, date):
    left = Counter()
    with open(source, newline="") as file:
        found = list(rows(csv.DictReader(file), left))
    with FILE.open("w", newline="") as file:
        file.write(HEAD.format(commit=commit, date=date, version=timm.__version__))
        csv.writer(file, lineterminator="\n").writerows(found)
    print(len(found), "rows; left out:", dict(left))


if __name__ == "__main__":
    main(*sys.argv[1:])
