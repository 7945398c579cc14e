"""`python -m jaxmlp`: the program without its script."""

import sys

from jaxmlp.cli import main

if __name__ == "__main__":
    sys.exit(main())
