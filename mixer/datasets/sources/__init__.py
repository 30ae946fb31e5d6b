"""Forms in which sets of images lie on disk."""
