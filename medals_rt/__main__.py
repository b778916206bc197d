"""Where the command `medals-rt` starts (also `python -m medals_rt`)."""

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C is a clean end already while its modules are imported."""
    try:
        from medals_rt.cli import main as run
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
