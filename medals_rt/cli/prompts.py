"""`medals-rt prompts`: which class a sentence names, and which classes there are."""

import json
from typing import Annotated

import typer

from medals_rt.cli._console import AsJson, Debug, Kind, Modality, print_table
from medals_rt.common.errors import InputError


def prompts_command(
    *,
    sentence: Annotated[str | None, typer.Argument(help="A sentence to read.")] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="What the sentence asks for [default: anatomy].")
    ] = None,
    list_classes: Annotated[bool, typer.Option("--list", help="List the known classes.")] = False,
    modality: Annotated[
        Modality | None, typer.Option(help="Which classes to list, or what the image is.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell which class a sentence names, or list the classes."""
    del debug  # read by one_line_errors
    if list_classes == (sentence is not None):
        raise InputError('give one of: a sentence, such as "Liver in abdominal CT", or --list')
    if sentence is None:
        _list(modality, kind, as_json=as_json)
    else:
        _find(sentence, kind or Kind.ANATOMY, modality, as_json=as_json)


def _find(sentence: str, kind: Kind, modality: Modality | None, *, as_json: bool) -> None:
    from medals_rt.prompts.matching import find_class
    from medals_rt.prompts.prompt_set import describe

    found = describe(find_class(sentence, kind.value, modality and modality.value))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        typer.echo(f"{found['modality']} {found['class']}")
        typer.echo(f"  {kind.value}, id {found['id']}, by the words {found['matched']!r}")


def _list(modality: Modality | None, kind: Kind | None, *, as_json: bool) -> None:
    from medals_rt.prompts.classes import classes_of

    known = classes_of(modality and modality.value, kind and kind.value)
    if as_json:
        rows = [
            {"modality": key.modality, "kind": key.kind, "class": key.name, "id": key.id}
            for key in known
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    columns = {"modality": "left", "kind": "left", "id": "right", "class": "left"}
    rows_text = [[key.modality, key.kind, str(key.id), key.name] for key in known]
    print_table(f"classes known: {len(known)}", columns, rows_text)
