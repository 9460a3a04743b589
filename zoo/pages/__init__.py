"""Renderings of one report.

`card` fills `card.md.j2`, a repository's README: its head by `front_matter`, its tables by `figures`, what a plan does
by `edits`, how the model came to be by `history`; how values read is `words`. Its `pictures` are what is left of each
layer (`widths`), the accuracies of its `family` and the `classes` that it forgot; how they look is `style`. `families`
draws several. `changed` draws what became of a model's layers, `latency_bars` how long models take, `front_plot`
accuracy against that. `markdown` makes a card HTML, `browse` is the page of `zoo browse`.
"""
