"""Renderings of one report: the card."""
