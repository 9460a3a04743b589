"""What a model costs, and how far it is from another.

`macs` counts, `parts` by layers, `conventions` counts once more as the sources do; `divergence` is of outputs from a
reference's, `curvature` how that bends; `latency` times models that take turns, `expectation` tells how long one will
take from what others took; `passes` says how many images are computed together, `tolerance` how far a figure may be
from its claim.
"""
