"""Latency of pruned models beside their dense bases: interleaved medians at batch 1 and 32, beside the macs.

scripts/bench/run latency [--quick] [--rounds 9] [--batch 1 32] [NAME ...]

Structure alone matters here, so weights are random and nothing is fetched. The speed-up is the median over rounds of
dense over pruned, with the interval that holds the true median in 95 % of cases (order statistics); one that covers 1
is no speed-up.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from interleaved import milliseconds
from scipy.stats import binom
from torch import nn

import zoo
from zoo import catalog


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median, by the sign test; the whole range where there are too few values."""
    below = int(binom.ppf(0.025, len(values), 0.5))
    ordered = sorted(values)[max(0, below - 1) : len(values) - max(0, below - 1)]
    return ordered[0], ordered[-1]


def forward(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """One forward pass, finished when it returns."""

    def call() -> None:
        with torch.inference_mode():
            model(images)
            if images.is_cuda:
                torch.cuda.synchronize()

    return call


def main() -> None:
    """Print a row for each model, batch and device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the catalog; default: every pruned one that has a structure")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--quick", action="store_true", help="one model, one image, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.names, arguments.rounds, arguments.batch = ["digits_cnn_pruned_50"], 1, [1]
    pruned = catalog.names(method="prune", task="image-classification")
    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    where = f"{torch.get_num_threads()} threads" + (
        f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    )
    print(f"milliseconds, median of {arguments.rounds} interleaved rounds, {where}")
    print(f"{'':38}{'device':>7}{'batch':>6}{'macs kept':>11}{'dense':>9}{'pruned':>9}{'speed-up':>10}  95 % interval")
    for name in arguments.names or pruned:
        entry = catalog.info(name)
        small, dense = zoo.create(name), zoo.create(entry.base.id)
        share = zoo.measure(small).macs / zoo.measure(dense, zoo.measure(small).input).macs
        for device in devices:
            small, dense = small.to(device), dense.to(device)
            for batch in arguments.batch:
                images = torch.randn(batch, *entry.input, device=device)
                calls = forward(dense, images), forward(small, images)
                d, s = milliseconds(arguments.rounds, *calls, clock=time.perf_counter)
                ratios = [one / other for one, other in zip(d, s, strict=True)]
                low, high = interval(ratios)
                mark = " (stand-in)" if small.zoo_entry.structure == "stand-in" else ""
                print(
                    f"{name:38}{device:>7}{batch:6}{share:11.1%}{statistics.median(d):9.1f}{statistics.median(s):9.1f}"
                    f"{statistics.median(ratios):9.2f}x  {low:.2f} to {high:.2f}{mark}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
