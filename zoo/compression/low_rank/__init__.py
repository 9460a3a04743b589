"""Layers as products of thinner ones: low_rank, falor, lockd and dwain."""
