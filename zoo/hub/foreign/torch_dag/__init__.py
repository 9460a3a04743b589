"""torch-dag checkpoints: a JSON graph and a pickled list of modules, read without running either."""

from zoo.hub.foreign.torch_dag.checkpoint import CONFIG as CONFIG
from zoo.hub.foreign.torch_dag.checkpoint import MODULES as MODULES
from zoo.hub.foreign.torch_dag.checkpoint import read as read
from zoo.hub.foreign.torch_dag.view import timm_view as timm_view
