"""What the shell offers for a flag that takes one of many names (`--install-completion`).

The lists are read where they stand, and only when the shell asks; typer keeps those that begin as
the user typed.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Final

import typer

from medals_rt.common.choices import MODALITIES, PRECISIONS, RUNNER_KINDS

IN_BASH: Final = ("_MEDALS_RT_COMPLETE", "complete_bash")
"""Variable by which bash asks for what it may offer, and its value."""

_SPECIAL: Final = re.compile(r"[^\w@%+=:,./~^-]")


@contextmanager
def quoted_for_bash() -> Iterator[None]:
    """Put a backslash before what is special to bash in each line that is printed meanwhile.

    Bash inserts what it is offered as it is: ``abdominal organs`` would be two words. Not where the
    user has begun the word with a quote.
    """
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        words = os.environ.get("COMP_WORDS", "").split("\n")
        at = int(os.environ.get("COMP_CWORD", "0"))
        text = printed.getvalue()
        if not (at < len(words) and words[at].startswith(("'", '"'))):
            text = "\n".join(_SPECIAL.sub(r"\\\g<0>", line) for line in text.split("\n"))
        typer.echo(text, nl=False)


def complete_sentence(context: typer.Context) -> list[str]:
    """Offer a sentence for every class, of the modality and kind that were given."""
    from medals_rt.prompts.classes import canonical_sentence, classes_of

    known = classes_of(context.params.get("modality"), context.params.get("kind"))
    return [canonical_sentence(key) for key in known]


def complete_group(context: typer.Context) -> list[str]:
    """Offer the groups of classes, of the modality that was given."""
    from medals_rt.prompts.classes import class_groups

    return [group.name for group in class_groups(context.params.get("modality"))]


def complete_demo_case() -> list[str]:
    """Offer the cases of the demo model."""
    from medals_rt.bundle.bundle import demo_folder

    return sorted(path.stem for path in (demo_folder() / "cases").glob("*.npz"))


def complete_modality() -> list[str]:
    """Offer the modalities."""
    return list(MODALITIES)


def complete_runner() -> list[str]:
    """Offer the runners."""
    return list(RUNNER_KINDS)


def complete_precision() -> list[str]:
    """Offer the precisions."""
    return list(PRECISIONS)


def complete_backend(incomplete: str) -> list[str]:
    """Offer the runners, and once one is named its precisions: ``openvino:fp32``."""
    runner, colon, _ = incomplete.partition(":")
    return [f"{runner}:{each}" for each in PRECISIONS] if colon else list(RUNNER_KINDS)


def complete_recipe() -> list[str]:
    """Offer the recipes that come with the package."""
    from medals_rt.bundle.recipes import shipped_recipes

    return list(shipped_recipes())


def complete_window() -> list[str]:
    """Offer the intensity windows of the policy."""
    from medals_rt.planning.policy import load_policy

    return ["auto", *load_policy().intensity_windows.windows]


def complete_format() -> list[str]:
    """Offer the formats that results are written in."""
    from medals_rt.io.registry import OUTPUT_ENDINGS

    return ["same", *(ending.removeprefix(".") for ending in OUTPUT_ENDINGS)]
