"""`medals-rt demo`: segment a case that comes with the package, and show the picture."""

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from medals_rt.cli._completion import complete_demo_case
from medals_rt.cli._output import out
from medals_rt.cli.run import report_result
from medals_rt.common.errors import InputError

EXAMPLES: Final = (
    "medals-rt demo",
    "medals-rt demo --case ct_liver_tumors --out tumors --no-open",
)
_YOUR_OWN: Final = (
    'your own scan: medals-rt run --bundle BUNDLE --input SCAN --prompt "Liver in abdominal CT"',
    "(this model has seen phantoms only; medals-rt export --help: a bundle of trained weights)",
)


def demo_command(
    *,
    case: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_demo_case,
            help="Which case: ct_anatomy or ct_liver_tumors.",
        ),
    ] = "ct_anatomy",
    folder: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of what is written.")
    ] = Path("medals-rt-demo"),
    show: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Open the picture in the system's viewer [default: on a terminal with a display].",
        ),
    ] = None,
) -> int:
    """Segment a case that comes with the package; show the picture.

    No scan and no model are needed. It writes the segmentation, a report and, with the extra
    `preview`, a picture.
    """
    from medals_rt.bundle.bundle import demo_folder
    from medals_rt.common.optional_deps import is_installed, missing
    from medals_rt.pipeline.job import run_job
    from medals_rt.pipeline.job_request import Job
    from medals_rt.pipeline.options import PromptSource, RunOptions

    cases = complete_demo_case()
    if case not in cases:
        raise InputError(
            f"the demo has no case {case!r}; its cases: {', '.join(cases)}", code="case-unknown"
        )
    bundle = demo_folder()
    picture = folder / "preview.png" if is_installed("Matplotlib") else None
    job = Job(
        input=bundle / "cases" / f"{case}.npz",
        output=folder / "segmentation.npz",
        source=PromptSource(file=bundle / "cases" / f"{case}.prompts.json"),
        report=folder / "report.json",
        preview=picture,
        options=RunOptions(bundle=bundle),
    )
    with out.progress() as progress:
        result = run_job(job, progress)
    code = report_result(job, result)
    if picture is None:
        out.remark(str(missing("a picture", "Matplotlib")))
    elif has_display() if show is None else show:
        typer.launch(str(picture.resolve()))
    for line in _YOUR_OWN:
        out.line(line)
    return code


def has_display() -> bool:
    """Whether someone sits at a terminal beside a screen."""
    if not sys.stdout.isatty():
        return False
    if sys.platform == "win32":
        return True
    if sys.platform == "darwin":
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
