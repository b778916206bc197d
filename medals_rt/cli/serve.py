"""`medals-rt serve`: a page and an API for one resident model."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._errors import EXIT_DONE, EXIT_INTERRUPTED
from medals_rt.cli._options import run_options, takes
from medals_rt.cli._output import out
from medals_rt.common.byte_sizes import parse_size

if TYPE_CHECKING:
    from medals_rt.pipeline.options import RunOptions

EXAMPLES: Final = (
    "medals-rt serve",
    "medals-rt serve --port 9000 --max-queue 4",
    "medals-rt serve --host 0.0.0.0 --host-name scans.example.org --token-file token.txt",
)


@takes(options=run_options)
def serve_command(
    *,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. For any but this machine's own loopback clients need a "
            "token."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes one that is free.")
    ] = 8700,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of the token that clients must know, readable by you alone [default: none "
            "on the loopback, else one that is printed].",
        ),
    ] = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name under which clients call this machine; repeat it for more."
        ),
    ] = None,
    replica: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of this server among several behind a proxy, which finds it by the ids of "
            "sessions.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for uploads and results while sessions last [default: the system's "
            "folder of temporary files]."
        ),
    ] = None,
    studies: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="DICOMweb server (dicomweb+https://HOST/dicom-web) whose series OHIF's MONAI "
            "Label extension may name.",
        ),
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Jobs that may wait [default: 16].")
    ] = None,
    max_sessions: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Sessions at once [default: 64].")
    ] = None,
    max_upload: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest upload [default: 2GiB].")
    ] = None,
    max_disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What all sessions may hold [default: 64GiB]."),
    ] = None,
    min_free: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="What must stay free on the disk; 0 for nothing [default: 512MiB]."
        ),
    ] = None,
    read_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory that reading an upload may take [default: 8GiB]."
        ),
    ] = None,
    cache_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for what jobs leave of their images, so that the next prompt and the next "
            "correction compute only what changed; 0 keeps nothing [default: a quarter of what is "
            "free, up to 4GiB].",
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="What a running job has to end when the server is stopped [default: 20].",
        ),
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="When an unused session ends [default: 3600]."),
    ] = None,
    options: "RunOptions",
) -> int:
    """Serve a page and an API for one model.

    Options of segmentation are what a job gets that says nothing of them.
    """
    from medals_rt.common.plugins import load_plugin

    serve = load_plugin("serve", "medals-rt serve")
    ended_by = serve(
        options,
        host=host,
        port=port,
        token_file=token_file,
        announce=out.line,
        warn=out.warning,
        host_names=tuple(name.lower() for name in host_name or ()),
        replica=replica,
        data_dir=data_dir,
        studies=studies,
        max_queue=max_queue,
        max_sessions=max_sessions,
        max_upload_bytes=_size(max_upload),
        max_disk_bytes=_size(max_disk),
        min_free_bytes=_size_or_zero(min_free),
        read_bytes=_size(read_memory),
        cache_bytes=_size_or_zero(cache_memory),
        grace_s=grace,
        idle_s=idle,
    )
    return EXIT_INTERRUPTED if ended_by == signal.SIGINT else EXIT_DONE


def _size(text: str | None) -> int | None:
    """Read an amount of bytes, where one was given."""
    return None if text is None else parse_size(text)


def _size_or_zero(text: str | None) -> int | None:
    """Read an amount of bytes that may be 0, where one was given."""
    return 0 if text == "0" else _size(text)
