"""ONNX: a model for programs that know no torch.

Read `export` (what a file holds and who writes it), then `runtime` (onnxruntime's outputs beside the model's own).
`integer` writes models of integers, node by node into a `writing`: with `tokens`, `quotients`, `moves` and `lookup` for
their ops, `padding` for how many channels they have there, `storing` for what they give; `backend` has onnxruntime
compute them.
"""
