"""ONNX: a model for programs that know no torch.

Read `export` (what a file holds and who writes it), then `runtime` (onnxruntime's outputs beside the model's own).
`integer` writes models of integers, with `moves` and `lookup`; `backend` has onnxruntime compute them.
"""
