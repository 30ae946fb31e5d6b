"""Data files about classes; `make` rebuilds them."""
