# PYTHON_ARGCOMPLETE_OK
"""`python -m mnistexp`, which is also the console script `mnistexp`."""

import sys
from collections.abc import Sequence

from mnistexp.study.signals import RaiseInterrupt, hush_lost_interrupts, leave_at_once, stop_alike


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a Ctrl-C while it is still being imported ends it as quietly as one later."""
    stop_alike(leave_at_once)
    from mnistexp.cli import main as run

    stop_alike(RaiseInterrupt())
    hush_lost_interrupts()
    try:
        return run(argv)
    except KeyboardInterrupt:  # before the command line could take care of it
        print("mnistexp: interrupted before anything began", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
