"""A structure that stands alone, as a graph over a closed table of operations.

Read `graph` (nodes, built and run), `ops` and `aten` (what a node may do), `bounds` (what running it may cost). Any
module becomes one by `capture`: traced by `tracing`, `drops` telling where branches were dropped, and written down by
`exported`, with what `program` and `layers` say of torch.export's own nodes. `integer`, `tokens`, `quotients` and
`mrt` are the ops of models that compute in integers alone, `checks` what they refuse, `certificate` what holds of them.
"""
