"""MLP-Mixer (arXiv 2105.01601) in JAX: pre-train, fine-tune, evaluate."""

__version__ = "0.1.0"
