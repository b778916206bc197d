"""`medals-rt version`: this package and what it runs on."""

from typing import Final

from medals_rt.cli._options import AsJson
from medals_rt.cli._output import out

EXAMPLES: Final = ("medals-rt version", "medals-rt version --json")


def version_command(*, as_json: AsJson = False) -> None:
    """Show the versions of medals-rt and the installed libraries."""
    from medals_rt.common.environment import library_versions

    versions = library_versions()
    if as_json:
        out.json(versions)
        return
    for name, found in versions.items():
        out.line(f"{name} {found}")
