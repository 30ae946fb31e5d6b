"""Commands beside train.py: `python -m mixer NAME`."""
