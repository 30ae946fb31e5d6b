"""`python -m mixer COMMAND`: see `mixer.cli`."""

import sys

from mixer import cli

if __name__ == "__main__":
  sys.exit(cli.main())
