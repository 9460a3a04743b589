"""Weighed: losses that are divided by what only the whole batch tells, however many parts and processes share it.

    L = mean + factor · sum / max(1, weight)

A detector's sum goes over the points that learn an object, and so does what it is divided by: which these are follows
from the network's own outputs, so parts of a batch aren't alike, and the mean of their quotients is another loss than
that of the batch. Sums and weights add up. So each part's sum is divided by the weight of all:

    parts          sum, weight     means of quotients     quotient of sums
    two images     6, 3            6/3 = 2
    two others     2, 2            2/2 = 1                (6 + 2) / (3 + 2) = 1.6, not 1.5
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Weighed:
    """The loss of a part of a batch.

    Args:
        sum: over what it is taken of.
        weight: of that, without gradients.
        mean: what further is minimised, as a mean over the part's images.
        factor: of the quotient.
    """

    sum: Tensor
    weight: Tensor
    mean: Tensor | float = 0.0
    factor: float = 1.0

    def of_batch(self, weight: Tensor | None = None, share: float = 1.0, processes: int = 1) -> Tensor:
        """What the part has in the batch's loss, which is the mean over processes of what their parts have together.

        Args:
            weight: of the whole batch; None where the part is all of it.
            share: of the process's images that the part has.
            processes: that share the batch equally.
        """
        whole = self.weight if weight is None else weight
        return share * self.mean + self.factor * (processes * self.sum / whole.clamp(min=1))
