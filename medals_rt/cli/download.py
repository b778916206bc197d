"""`medals-rt download`: weights or a bundle from a model hub. Needs the extra `hub`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._errors import EXIT_INTERRUPTED
from medals_rt.cli._options import AsJson
from medals_rt.cli._output import out
from medals_rt.common.errors import InputError

if TYPE_CHECKING:
    from medals_rt.bundle.hub import Download

EXAMPLES: Final = (
    "medals-rt download --list",
    "medals-rt download hf:spc819/Medal-S-V1.0 --unpinned --to weights/medal-s",
)


def download_command(
    *,
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[hf:OWNER/NAME[/PATH]@COMMIT]",
            help="What to download: a repository, or a folder or file of it, at a commit.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder to put it in [default: one of its own in the user's cache]."),
    ] = None,
    unpinned: Annotated[
        bool,
        typer.Option(
            "--unpinned",
            help="Accept a branch or tag (nothing: main), and print the commit that it names now.",
        ),
    ] = False,
    known: Annotated[
        bool, typer.Option("--list", help="List the addresses of published weights.")
    ] = False,
    as_json: AsJson = False,
) -> int | None:
    """Download weights or a bundle from a model hub."""
    from medals_rt.bundle import hub
    from medals_rt.bundle.hub_address import HubAddress

    if known:
        _list_known(as_json=as_json)
        return None
    if address is None:
        raise InputError(
            "name an address, hf:OWNER/NAME@COMMIT; --list shows those of published weights",
            code="address-missing",
        )
    wanted = HubAddress.parse(address)
    if unpinned and not wanted.is_pinned:
        wanted = hub.pin(wanted)
        out.remark(f"{address} is now {wanted}")
    try:
        with out.progress() as progress:
            done = hub.download(wanted, to, progress=progress)
    except KeyboardInterrupt:
        out.failure("interrupted; what is here is kept, the same command continues")
        return EXIT_INTERRUPTED
    _show(done, as_json=as_json)
    return None


def _list_known(*, as_json: bool) -> None:
    import msgspec

    from medals_rt.bundle.hub_address import known_weights

    if as_json:
        out.json(msgspec.to_builtins(known_weights()))
        return
    columns = {"address": "left", "commit": "left", "what it holds": "left", "license": "left"}
    rows = [
        (
            each.address,
            each.commit or "not known: --unpinned",
            each.holds,
            each.license or "not known: see its page",
        )
        for each in known_weights()
    ]
    out.table("published weights", columns, rows)


def _show(done: "Download", *, as_json: bool) -> None:
    import msgspec

    if as_json:
        content = {
            "address": str(done.address),
            "folder": str(done.folder),
            "files": msgspec.to_builtins(done.files),
            "left_out": list(done.left_out),
            "fetched_bytes": done.fetched_bytes,
        }
        out.json(content)
        return
    columns = {"file": "left", "MB": "right", "SHA-256": "left"}
    rows = [(each.file, f"{each.bytes / 1e6:.1f}", each.sha256 or "") for each in done.files]
    out.table(str(done.address), columns, rows)
    if done.left_out:
        out.remark(f"left out, not needed: {', '.join(done.left_out)}")
    out.line(f"{done.content}: all here and checked, {done.fetched_bytes / 1e6:.1f} MB fetched")
