"""Latency of pruned models beside their dense bases: `zoo bench` of one after the other.

scripts/bench/run latency [--quick] [--rounds 50] [--batch 1,32] [NAME ...]
"""

import argparse

import torch

from zoo import catalog
from zoo.cli import cli


def main() -> None:
    """Print a table for each model and device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the catalog; default: every pruned one that has a structure")
    parser.add_argument("--rounds", default="50")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--quick", action="store_true", help="one small model, one image, few rounds")
    asked = parser.parse_args()
    if asked.quick:
        asked.names, asked.rounds, asked.batch = ["digits_cnn_pruned_50"], "15", "1"
    for name in asked.names or catalog.names(method="prune", task="image-classification"):
        for device in ("cpu", *["cuda"] * torch.cuda.is_available()):
            how = ["--rounds", asked.rounds, "--batch", asked.batch, "--device", device]
            cli(["bench", name, *how], standalone_mode=False)


if __name__ == "__main__":
    main()
