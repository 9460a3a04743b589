"""How a compressed model is written down and rebuilt."""
