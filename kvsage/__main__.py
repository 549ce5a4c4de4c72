"""`python -m kvsage` is the `kvsage` command."""

import sys

from kvsage.cli import main

if __name__ == "__main__":
    sys.exit(main())
