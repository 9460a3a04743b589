"""What users do, a path each, readable from top to bottom.

Start with `loading` (create, load; what libraries publish by `dense_weights`, a user's own weights by `own_weights`, a
new head by `adaptation`), `compressing` and `distilling`, `saving` (save, whose `licences` hold and whose `cards` are
written, push, and convert by `converting`, whose results the cache keeps by `conversions`), `verification` (by
`judging`; of lists into files by `recorded`) and `evaluating` (by `measuring`), `predicting`. A model of the catalog
is made by `beginning` and `building`, whose `recipes` say how and whose `training_costs` say how long; `sweeping` makes
several, `changing` tells what became of layers; `coverage` tells what can be pruned.
`exporting` writes files for other programs, `viewing` the graph of a plan. `benching` times `candidates`, by `backends`
and in `cold_starts`, before any weights are there; `picking` says which to take of `contenders`, that a `watch` times
and `halving` chooses among; `timings` keeps what they took.
"""
