"""`python -m natten_zoo` is the command `natten-zoo`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
