"""`python -m vokens` is the command line."""

import sys

from vokens.cli import main

if __name__ == "__main__":
    sys.exit(main())
