"""`mixer`'s input pipeline, for `benchmarks.input`."""

import input_pipeline
from benchmarks import input_server
from mixer import __version__
from mixer import config as config_lib
from mixer.datasets import split


class Files(list):
  """Records of encoded files in memory, many times over."""

  def __len__(self):
    return 1_000_000

  def __getitems__(self, indices):
    files = list.__len__(self)
    return [{"image": self[i % files], "label": i % 10} for i in indices]


def batches(files, randaugment, cores):
  part = split.Split("files", "all", Files(files), tuple("0123456789"))
  config = config_lib.default()
  config.batch_size = input_server.BATCH
  config.data.threads = cores
  if randaugment:
    config.data.randaugment_layers = 2
    config.data.randaugment_magnitude = 10
  return input_pipeline.train_batches(part, config)


if __name__ == "__main__":
  input_server.serve(f"mixer {__version__}", batches)
