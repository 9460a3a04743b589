"""A checkpoint of torch-dag, and a catalog whose model is converted from it."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "data" / "torch_dag" / "deit3_tiny_pruned"
FAMILY = """
[family]
architecture = "deit3_small_patch16_224"
task = "image-classification"
base = "timm/deit3_small_patch16_224.fb_in1k"
license = "apache-2.0"
input = [3, 64, 64]
{family}
[[model]]
name = "tiny"
origin = {{ repo = "upstream/tiny", format = "torch-dag"{more} }}
"""
