# PYTHON_ARGCOMPLETE_OK
"""`python -m mnistexp`, which is also the console script `mnistexp`."""

import sys
from collections.abc import Sequence

from mnistexp.study.signals import RaiseInterrupt, exit_now, ignore_unraisable_interrupts, install_signal_handlers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a Ctrl-C while it is still being imported ends it as quietly as one later."""
    install_signal_handlers(exit_now)
    from mnistexp.cli import main as run

    install_signal_handlers(RaiseInterrupt())
    ignore_unraisable_interrupts()
    try:
        return run(argv)
    except KeyboardInterrupt:  # before the command line could take care of it
        print("mnistexp: interrupted before anything began", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
