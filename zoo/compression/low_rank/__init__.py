"""Low rank: a layer becomes two thinner ones in sequence, y = B (A x) + b.

Read `factors` first (which layers can, what the two are called), then `low_rank` and its stages `fisher`, `allocation`,
`least_squares`, `kfac` in this order; `falor`, `lockd` and `dwain` are ptdeco's methods, each by itself.
"""
