"""Architectures that timm lacks, written from their papers, in timm's manners, and what their outputs mean.

`architectures` has a row for each: its name, by which a base says `zoo/NAME`, and what builds it. To add one, write its
file: a module that can be built on the meta device and says of itself what timm's models do (`pretrained_cfg`,
`num_classes`, `feature_info`, `get_classifier`, `reset_classifier`, `forward_features`, `forward_head`,
`forward_intermediates`), as a `Classifier` of stages and a linear layer does by itself, and a `Detector` of maps and
heads. What a detector's heads become, boxes and scores, is a row of `heads.DECODERS`.
"""
