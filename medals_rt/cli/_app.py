"""The command line as a whole: which commands there are, and where every error ends.

A new command is a module with a function and `EXAMPLES`, and a line in `COMMANDS`.
"""

import inspect
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from medals_rt.cli import (
    batch,
    bench,
    build,
    demo,
    doctor,
    download,
    evaluate,
    export,
    info,
    listen,
    plan,
    prompts,
    run,
    serve,
    verify,
    version,
)
from medals_rt.cli._completion import IN_BASH, quoted_for_bash
from medals_rt.cli._configuration import configuration_file, read_defaults
from medals_rt.cli._errors import USAGE_ERROR, report_error
from medals_rt.cli._options import HEADINGS, Command, with_common_flags
from medals_rt.cli._output import out
from medals_rt.common.distribution import VERSION

COMMANDS: Final[dict[str, tuple[Command, Sequence[str]]]] = {
    "demo": (demo.demo_command, demo.EXAMPLES),
    "run": (run.run_command, run.EXAMPLES),
    "batch": (batch.batch_command, batch.EXAMPLES),
    "plan": (plan.plan_command, plan.EXAMPLES),
    "prompts": (prompts.prompts_command, prompts.EXAMPLES),
    "listen": (listen.listen_command, listen.EXAMPLES),
    "evaluate": (evaluate.evaluate_command, evaluate.EXAMPLES),
    "serve": (serve.serve_command, serve.EXAMPLES),
    "info": (info.info_command, info.EXAMPLES),
    "download": (download.download_command, download.EXAMPLES),
    "export": (export.export_command, export.EXAMPLES),
    "build": (build.build_command, build.EXAMPLES),
    "verify": (verify.verify_command, verify.EXAMPLES),
    "doctor": (doctor.doctor_command, doctor.EXAMPLES),
    "bench": (bench.bench_command, bench.EXAMPLES),
    "version": (version.version_command, version.EXAMPLES),
}
"""Each command with its examples, in the order of `medals-rt --help`."""


class OneCommand(TyperCommand):
    """A command that takes options once, and lists them under the headings that they name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an option that is given twice but holds one value: the first would be lost.

        And an empty path, mostly an unset variable of a shell: it would be the current folder; and
        an option in the place of another one's value.
        """
        if not ctx.resilient_parsing:
            given, _, found = self.make_parser(ctx).parse_args(args=list(args))
            order: list[Any] = found
            known = inspect.signature(COMMANDS[str(self.name)][0]).parameters
            names = {name for each in self.get_params(ctx) for name in each.opts}
            for each in dict.fromkeys(order):
                value = given.get(each.name)
                values = value if isinstance(value, list | tuple) else [value]
                takes_path = each.name in known and "Path" in str(known[each.name].annotation)
                if takes_path and "" in values:
                    raise typer.BadParameter("it is empty", ctx=ctx, param=each)
                for word in map(str, values if each.param_type_name == "option" else ()):
                    if word in names or (takes_path and word.startswith("--")):
                        text = f"option {each.opts[0]!r} lacks its value: {word!r} follows it"
                        raise USAGE_ERROR(text, ctx)
            for each in dict.fromkeys(order):
                single = not (each.multiple or getattr(each, "is_flag", False) or each.nargs != 1)
                if each.param_type_name == "option" and single and order.count(each) > 1:
                    raise typer.BadParameter(
                        f"it takes one value, found {order.count(each)}", ctx=ctx, param=each
                    )
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, of commands that segment under `HEADINGS`, the others first."""
        parameters = self.get_params(ctx)
        segments = {*HEADINGS["Algorithm"]} <= {each.name for each in parameters}
        heading_of = {name: each for each, names in HEADINGS.items() for name in names if segments}
        headings: dict[str, list[tuple[str, str]]] = {
            each: [] for each in ("Arguments", "Options", *HEADINGS)
        }
        for each in parameters:
            record = each.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if each.param_type_name == "argument" else "Options"
                headings[heading_of.get(each.name, plain)].append(record)
        for heading, records in headings.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Commands(TyperGroup):
    """The group of all commands, which turns what they return and raise into exit codes."""

    def make_context(self, info_name: Any, args: Any, *given: Any, **more: Any) -> Any:
        """Parse what stands before the command's name; a file may hold other options."""
        out.json_progress = "--json-progress" in args  # for errors that come before its flags
        with _errors_end_the_command():
            file = configuration_file()
            if file is not None:
                defaults = read_defaults(file)
                more["default_map"] = {
                    name: defaults
                    for name, (command, _) in COMMANDS.items()
                    if defaults.keys() & inspect.signature(command).parameters.keys()
                }
            return super().make_context(info_name, args, *given, **more)

    def invoke(self, ctx: Any) -> Any:
        """Parse a command's own words and run it."""
        with _errors_end_the_command():
            code = super().invoke(ctx)
        raise typer.Exit(code or 0)


app = typer.Typer(
    name="medals-rt",
    cls=Commands,
    help="Segment 3D medical images by text with exported Medal S models.",
    epilog="`medals-rt COMMAND --help` shows a command's options and examples.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version of medals-rt and exit.")
    ] = False,
) -> None:
    out.start(json_progress=out.json_progress)
    if version:
        out.line(f"medals-rt {VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        out.line(context.get_help())


def _register(name: str, command: Command, examples: Sequence[str]) -> None:
    # \b keeps the lines of a paragraph as they are
    epilog = "\n".join(("\b", "Examples:", *(f"  {example}" for example in examples)))
    app.command(name, cls=OneCommand, epilog=epilog)(with_common_flags(command))


for _name, (_command, _examples) in COMMANDS.items():
    _register(_name, _command, _examples)


@contextmanager
def _errors_end_the_command() -> Iterator[None]:
    """Report what is raised in one line, and exit with its code."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # typer ends on these by itself
        raise
    except (KeyboardInterrupt, Exception) as error:
        raise typer.Exit(report_error(error)) from error


def main() -> None:
    """Run the command line. SIGTERM and SIGHUP end it as errors do: nothing is left half written.

    What `nohup` started goes on.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if os.name == "posix" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminate)
    variable, asked_in_bash = IN_BASH
    if os.environ.get(variable) == asked_in_bash:
        with quoted_for_bash():
            app()
    # what completes `python -m medals_rt` were no script that a shell could read
    about_completion = {"--install-completion", "--show-completion"} & set(sys.argv[1:])
    app(prog_name="medals-rt" if about_completion else None)


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
