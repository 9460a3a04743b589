"""One script per family of models; `python -m builders NAME`."""
