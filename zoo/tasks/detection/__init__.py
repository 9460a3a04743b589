"""Detection: images with boxes, and what a detector makes of them. Begin with `targets`."""
