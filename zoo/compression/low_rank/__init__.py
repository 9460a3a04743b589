"""Low rank: a layer becomes two thinner ones in sequence, y = B (A x) + b.

Read `factorable` (which layers can) and `factors` (the two) first, then `low_rank` and its stages `fisher`,
`allocation`, `kfac` in this order; `falor`, `lockd` and `dwain` are ptdeco's, each by itself.
"""
