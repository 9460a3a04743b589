"""Other projects' checkpoints, read without running anything of theirs.

Read `archive` (the zip of torch.save) and `unpickle` (a pickle, of a closed list of classes), then `ptdeco` and
`torch_dag`, the two formats.
"""
