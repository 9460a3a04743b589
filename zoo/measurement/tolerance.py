"""How far a figure, measured again, may be from the one that is claimed: the one rule for all of them.

Of the same pixels one image may turn, whose two best outputs are a rounding apart. Another decoder, resize or
processor of images turns more: a share t of them, as often to right as to wrong, so of n images the number of right
ones moves by a sum of n draws from {-1, 0, 1}, whose variance is t n. A draw of n images from those that a claim is of
has the variance p (1 - p) n besides, and what is printed is rounded:

    tolerance = rounding + 1 / n + Z sqrt((t + p (1 - p)) / n),   t = 0 of the same pixels, p (1 - p) = 0 of all images

Z is three standard deviations: of true claims fewer than one in a hundred is said to differ, while a loss
of one point on 50,000 images is always found. A mean precision of detectors is taken for a share of its objects, which
it isn't quite.

Source: https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval (normal approximation, with the
continuity correction of one image).
"""

import math

Z = 3.0
TURNED = 0.02  # of 500 of ImageNet's MobileNetV2 turns .002 by another library's bicubic resize, .018 by Lanczos's


def tolerance(samples: int, *, turned: float = 0.0, drawn: float | None = None, rounding: float = 0.0) -> float:
    """The largest difference at which two figures, shares 0..1 of samples, agree.

    Args:
        samples: images, or objects, that the figure is of.
        turned: the share of them that may turn: none of the same pixels, `TURNED` of others.
        drawn: the claim, where it is of all samples and these are drawn from them.
        rounding: by how much the claim may be rounded.

    Returns:
        An absolute difference.

    >>> [round(tolerance(50_000, turned=share), 5) for share in (0.0, TURNED)]
    [2e-05, 0.00192]
    """
    spread = 0.0 if drawn is None else drawn * (1 - drawn)
    return rounding + 1 / samples + Z * math.sqrt((turned + spread) / samples)


def printed(value: float) -> float:
    """By how much a printed figure may be off: a unit of its last digit, as some sources cut and others round.

    >>> printed(0.765), printed(5)
    (0.001, 0.5)
    """
    return 0.5 if isinstance(value, int) else float(10.0 ** -len(str(value).partition(".")[2]))
