# PYTHON_ARGCOMPLETE_OK
"""`python -m mnistexp`, which is also the console script `mnistexp`."""

import sys

from mnistexp.cli import main

if __name__ == "__main__":
    sys.exit(main())
