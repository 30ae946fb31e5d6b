"""A train.py for tests: does at each start what the plot of its host says.

exit CODE              prints a line, exits
taken STATE, CODE      the slice becomes STATE (or GONE), then it exits
taken STATE, hang      the slice becomes STATE, it goes on
killed                 dies of SIGKILL
wait                   runs until the file `go` lies in the home, exits 0
SIGTERM                makes it exit 42, whatever it does
"""

import json
import os
import pathlib
import signal
import sys
import time

HOME = pathlib.Path(os.environ["HOME"])
CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])


def main() -> None:
  signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
  with open(HOME / "starts", "a") as f:
    f.write(json.dumps(sys.argv[1:]) + "\n")
  number = len((HOME / "starts").read_text().splitlines())
  plot = json.loads((HOME / "plot.json").read_text())
  what, _, rest = plot[number - 1].partition(" ")
  print("training", flush=True)
  if what == "taken":
    state, _, rest = rest.partition(", ")
    if state == "GONE":
      (CLOUD / "node").unlink()
    else:
      (CLOUD / "node").write_text(state)
    (CLOUD / "request").write_text("SUSPENDED")
    if rest == "hang":
      time.sleep(60)
  if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  if what == "wait":
    deadline = time.monotonic() + 60
    while not (HOME / "go").exists() and time.monotonic() < deadline:
      time.sleep(0.02)
    rest = "0"
  if rest == "1":
    print("error: the disk is full: give it another.", flush=True)
  sys.exit(int(rest))


if __name__ == "__main__":
  main()
