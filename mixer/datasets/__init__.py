"""Data sets: the builders that TFDS lacks, and how sets are opened."""
