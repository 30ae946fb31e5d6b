"""Commands beside train.py: `python -m tools.NAME`."""
