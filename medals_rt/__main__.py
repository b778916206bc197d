"""Where the command `medals-rt` starts (also `python -m medals_rt`)."""

import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it cleanly even while its modules are being imported."""
    try:
        from medals_rt.cli import main as run
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    run()


if __name__ == "__main__":
    main()
