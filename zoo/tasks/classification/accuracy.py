"""Top-1 accuracy as a metric of the `evaluate` library, packaged: nothing is fetched and no script is run.

It imports optional packages at its top; `figures` imports it once they are known to be installed.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    """The share of images whose most likely class is the right one, 0..1.

    Formula: top1 = mean(prediction == reference).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Accuracy(keep_in_memory=True, cache_dir=folder).compute(predictions=[3, 1, 4, 1], references=[3, 1, 4, 0])
    {'top1': 0.75}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Top-1 accuracy: the share of images whose most likely class is the right one.",
            citation="",
            inputs_description="predictions, references: class numbers (int), one per image.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"top1": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
