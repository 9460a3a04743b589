"""Renderings of one report: `card` fills `card.md.j2`, a repository's README."""
