"""`python -m hypernoise`: the command line."""

import sys

from hypernoise.cli import main

if __name__ == "__main__":
    sys.exit(main())
