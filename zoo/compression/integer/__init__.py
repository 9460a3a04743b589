"""Integer models: models of floats become models that compute in integers alone.

`integer` is the method; `constants` computes once what depends on no image, `folding` makes batch norms part of layers,
`observing` looks at the calibration images, `steps` and `planning` choose what a byte counts, `rounding` and `layers`
the weights; `twins`, `tokens` and `quotients` have what stands for each node in whole numbers, `writing` the graph so
far; `mrt` is the scheme of that name.
"""
