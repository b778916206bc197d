"""The command `medals-rt`. Each subcommand parses, calls one public function and prints."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

import typer

from medals_rt.cli._console import one_line_errors
from medals_rt.cli.batch import batch_command
from medals_rt.cli.bench import bench_command
from medals_rt.cli.build import build_command
from medals_rt.cli.doctor import doctor_command
from medals_rt.cli.evaluate import evaluate_command
from medals_rt.cli.export import export_command
from medals_rt.cli.info import info_command, version_command
from medals_rt.cli.plan import plan_command
from medals_rt.cli.prompts import prompts_command
from medals_rt.cli.run import run_command
from medals_rt.cli.verify import verify_command

app = typer.Typer(
    name="medals-rt",
    help="Segment 3D medical images by text with exported Medal S models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "run": run_command,
    "batch": batch_command,
    "plan": plan_command,
    "prompts": prompts_command,
    "evaluate": evaluate_command,
    "info": info_command,
    "export": export_command,
    "build": build_command,
    "verify": verify_command,
    "doctor": doctor_command,
    "bench": bench_command,
    "version": version_command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(one_line_errors(_command))


def main() -> None:
    """Run the command line. A termination signal ends it like an error: nothing stays half done."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
