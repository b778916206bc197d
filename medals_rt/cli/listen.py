"""`medals-rt listen`: a DICOM node that segments what is sent to it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._errors import EXIT_DONE, EXIT_FAILURE, EXIT_INTERRUPTED
from medals_rt.cli._options import run_options, takes
from medals_rt.cli._output import out

if TYPE_CHECKING:
    from medals_rt.pipeline.options import RunOptions

EXAMPLES: Final = ("medals-rt listen node.toml --bundle bundles/mine",)


@takes(options=run_options)
def listen_command(
    *,
    configuration: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="TOML: title, callers, folder, peers, rules; see docs/hospital.md."
        ),
    ],
    options: "RunOptions",
) -> int:
    """Segment DICOM series that other nodes send.

    A file of rules says what is segmented in which series, and where results go.

    SIGTERM ends it at once and loses nothing: it goes on where it was at the next start.
    """
    import signal

    from medals_rt.common.plugins import load_plugin

    listen = load_plugin("listen", "medals-rt listen")
    ended_by = listen(configuration, options, announce=out.line, warn=out.warning)
    return {signal.SIGTERM: EXIT_DONE, signal.SIGINT: EXIT_INTERRUPTED}.get(ended_by, EXIT_FAILURE)
