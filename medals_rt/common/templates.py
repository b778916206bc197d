"""Pages and reports from templates that lie beside the modules which fill them.

Needs jinja2 (the extras `preview` and `bench`).
"""

from importlib import resources
from typing import Any

from medals_rt.common.optional_deps import require


def fill_template(package: str, name: str, **values: Any) -> str:
    """Fill a template with values; one that it names and is not given is an error.

    Parameters
    ----------
    package
        Where the template lies, such as ``"medals_rt.tools.bench"``.
    name
        Its file. What goes into one that ends in ``.html.j2`` is escaped.
    values
        What it is filled with.

    Raises
    ------
    MissingDependencyError
        If jinja2 is not installed.
    """
    require("a page", "Jinja2")
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str:
        return resources.files(package).joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(**values)
