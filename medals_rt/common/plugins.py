"""Parts that another package brings, found by its entry points: this package never imports it.

`medals_export` needs torch and imports this package. What commands here need of it (the export, the
engine builder, PyTorch as a reference) is declared in `pyproject.toml` under `medals_rt.plugins`.
"""

from importlib.metadata import entry_points
from typing import Any, Final

from medals_rt.common.errors import MissingDependencyError

GROUP: Final = "medals_rt.plugins"


def load_plugin(name: str, what: str) -> Any:
    """Import what an installed package declares under a name of `GROUP`.

    Parameters
    ----------
    name
        Such as ``"export"``.
    what
        What needs it, for the message, such as ``"medals-rt export"``.

    Raises
    ------
    MissingDependencyError
        If no installed package declares it.
    """
    for entry in entry_points(group=GROUP, name=name):
        return entry.load()
    raise MissingDependencyError(
        f"{what} needs the entry point {name!r} of medals-rt, which isn't installed: pip install "
        "'medals-rt' again, with the extra that the command's --help names"
    )
