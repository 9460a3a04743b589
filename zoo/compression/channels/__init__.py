"""Channels: which of them must be cut together, cutting them, and the check of every cut.

Read `groups` (the values), `analysis` (how they are found), `trace` and `rules` with the rules' own files `pointwise`,
`views`, `contraction`, `recurrence` (what each operation does to the ids of `ids`), then `cutting` (the program without
some), `reference` (what it must compute) and `checking` (whether it does). `planning` writes a cut down.

A channel of a layer lies in many tensors, and goes from all of them or from none:

    image ── conv1 ── norm ── relu ── conv2 ── logits

>>> from collections import OrderedDict
>>> import torch
>>> from torch import nn
>>> from zoo.compression.channels.analysis import analyse, exported
>>> layers = {"conv1": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4), "relu": nn.ReLU(), "conv2": nn.Conv2d(4, 3, 1)}
>>> model = nn.Sequential(OrderedDict(layers)).eval()
>>> analysis = analyse(exported(model, torch.zeros(2, 2, 8, 8)), model)
>>> print(analysis)
group  units  kind   writers  readers
conv1  4      inner  conv1    conv2
conv2 stays: an output of the model
>>> print(analysis.groups[0])
conv1: 4 units, inner
  conv1.weight[i]
  conv1.bias[i]
  norm.weight[i]
  norm.bias[i]
  conv2.weight[:, i]
  norm.running_mean[i]
  norm.running_var[i]
>>> kept = analysis.kept([torch.tensor([0, 2])])
>>> {path: list(tensor.shape) for path, tensor in kept.select(dict(model.named_parameters())).items()}["conv2.weight"]
[3, 2, 1, 1]

A sum makes one group of all that write into it, the residual stream; of an attention whole heads go, from q, k and v at
once (here each of 2 channels, so a head is 6 rows of `qkv`):

    tokens ── embed ──┬─────────────── + ──┬───────────── + ── head ── logits
                      └─ qkv ── proj ──┘   └─ fc1 ── fc2 ─┘

>>> from timm.models.vision_transformer import Block
>>> layers = {"embed": nn.Linear(3, 8), "block": Block(8, 4, mlp_ratio=2), "head": nn.Linear(8, 2)}
>>> model = nn.Sequential(OrderedDict(layers)).eval()
>>> analysis = analyse(exported(model, torch.zeros(2, 5, 3)), model)
>>> print(analysis)
group          units  kind        writers                            readers
embed          8      residual    embed, block.attn.proj and 1 more  block.attn.qkv, block.mlp.fc1 and 1 more
block.attn     4      heads of 2  block.attn.qkv                     block.attn.proj
block.mlp.fc1  16     inner       block.mlp.fc1                      block.mlp.fc2
head stays: an output of the model
>>> print(analysis.groups[1])
block.attn: 4 units, heads of 2
  block.attn.qkv.weight[i], 6 positions
  block.attn.proj.weight[:, i], 2 positions
"""
