# PYTHON_ARGCOMPLETE_OK
"""`python -m mnistexp`, and the console script `mnistexp`."""

import sys
from collections.abc import Sequence

from mnistexp.study.signals import RaiseInterrupt, exit_now, ignore_unraisable_interrupts, install_signal_handlers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Ctrl-C during the imports prints no traceback either."""
    install_signal_handlers(exit_now)
    from mnistexp.cli import main as run

    install_signal_handlers(RaiseInterrupt())
    ignore_unraisable_interrupts()
    try:
        return run(argv)
    except KeyboardInterrupt:  # before cli.main could handle it
        print("mnistexp: interrupted before anything started", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
