"""The JPEG decoder alone, whole images, for `benchmarks.input`."""

import concurrent.futures
import importlib.metadata
import itertools

import simplejpeg

from benchmarks import input_server


def batches(files, randaugment, cores):
  del randaugment
  pool = concurrent.futures.ThreadPoolExecutor(cores)

  def decode(many):
    for data in many:
      simplejpeg.decode_jpeg(data, strict=False)

  endless = itertools.cycle(files)
  while True:
    batch = list(itertools.islice(endless, input_server.BATCH))
    list(pool.map(decode, (batch[i : i + 8] for i in range(0, len(batch), 8))))
    yield


if __name__ == "__main__":
  version = importlib.metadata.version("simplejpeg")
  input_server.serve(f"simplejpeg {version}", batches)
