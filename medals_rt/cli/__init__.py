"""The command `medals-rt`. Each subcommand parses, calls one public function and prints."""

import signal
import sys
from types import FrameType

import typer

from medals_rt.cli.console import one_line_errors
from medals_rt.cli.evaluate import evaluate
from medals_rt.cli.export import export
from medals_rt.cli.inspect import info, version
from medals_rt.cli.plan import plan
from medals_rt.cli.prompts import prompts
from medals_rt.cli.run import run

app = typer.Typer(
    name="medals-rt",
    help="Segment 3D medical images by text with exported Medal S models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _command in (run, plan, prompts, evaluate, info, export, version):
    app.command()(one_line_errors(_command))


def main() -> None:
    """Run the command line. A termination signal ends it like an error: nothing stays half done."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
