"""Pruning: which units of each group stay, and their readers fitted to them."""
