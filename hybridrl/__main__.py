"""python -m hybridrl: the same as the command `hybridrl`."""

import sys

from hybridrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
