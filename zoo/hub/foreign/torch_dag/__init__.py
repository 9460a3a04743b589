"""torch-dag checkpoints: a JSON graph and a pickled list of modules, read without running either.

Read `checkpoint`, then how a graph of ours is written of it: `vertices` (each of theirs), `leaves` and `blocks` (their
modules), `writer` (ours). `view` finds the timm model that a graph was made from.
"""

from zoo.hub.foreign.torch_dag.checkpoint import CONFIG as CONFIG
from zoo.hub.foreign.torch_dag.checkpoint import MODULES_FILE as MODULES_FILE
from zoo.hub.foreign.torch_dag.checkpoint import read_checkpoint as read_checkpoint
from zoo.hub.foreign.torch_dag.view import plan_view as plan_view
