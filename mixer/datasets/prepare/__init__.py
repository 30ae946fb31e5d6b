"""From images, TFDS or TFRecord to ArrayRecord files, once."""
