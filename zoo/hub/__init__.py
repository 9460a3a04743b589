"""Repositories: what lies in one, and how it gets to the Hub and back.

Read `repository` (the folder and its config.json), `weights` (its safetensors), `graph_view` (a graph beside a plan),
then `remote` (fetched and published), `spaces` (published pages), `listed` (what an organisation has) and `errors`
(what the Hub's client raises).
`timm_folder` reads what timm saved, `state_dicts` a user's own weights, `torchvision_weights` torchvision's, `foreign`
other projects' checkpoints.
"""
