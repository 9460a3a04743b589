"""How a network is written down and rebuilt.

Read `description` (what a model is: base and plan, or graph), `base` and `sources` (the libraries that have bases;
`torchvision_models` lets torchvision's say what timm's do), `plan` (the edits) and `tensors` (module ↔ tensors), then
what edits stand on: `narrowing`, `blocks`, `replacements`, `remnants`.
`describing` goes the other way, from a model to what it is; `changed` compares two, layer by layer; `graph` is a
structure that stands alone.
"""
