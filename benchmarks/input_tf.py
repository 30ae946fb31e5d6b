"""The same with tf.data, as big_vision composes it, for `benchmarks.input`.

Decoding fused with the crop, bilinear resizing, flip, values in [-1, 1]: its
`decode_jpeg_and_inception_crop(224)|flip_lr|value_range(-1, 1)`.
"""

import input_server

try:
  import tensorflow as tf  # pyright: ignore
except ImportError:
  raise SystemExit() from None


def prepare(data):
  begin, size, _ = tf.image.sample_distorted_bounding_box(
    tf.image.extract_jpeg_shape(data),
    tf.zeros([0, 0, 4], tf.float32),
    area_range=(0.05, 1.0),
    min_object_covered=0,
    use_image_if_no_bounding_boxes=True,
  )
  window = tf.concat([begin[:2], size[:2]], 0)
  image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
  image = tf.image.resize(image, (input_server.SIZE, input_server.SIZE))
  return tf.image.random_flip_left_right(image) / 127.5 - 1


def batches(files, randaugment, cores):
  del randaugment
  dataset = (
    tf.data.Dataset.from_tensor_slices(files)
    .repeat()
    .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(input_server.BATCH, drop_remainder=True)
    .prefetch(2)
  )
  options = tf.data.Options()
  options.threading.private_threadpool_size = cores
  return iter(dataset.with_options(options).as_numpy_iterator())


if __name__ == "__main__":
  input_server.serve(f"tensorflow {tf.__version__}", batches)
