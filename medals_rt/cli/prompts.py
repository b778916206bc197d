"""`medals-rt prompts`: which class a sentence names, and which classes there are."""

import sys
from typing import Annotated, Final

import typer

from medals_rt.cli._completion import complete_sentence
from medals_rt.cli._options import AsJson, modality_option
from medals_rt.cli._output import out
from medals_rt.common.choices import Kind, Modality
from medals_rt.common.errors import InputError

EXAMPLES: Final = (
    'medals-rt prompts "Liver in abdominal CT"',
    'medals-rt prompts "liver tumors, CT" --kind lesion --json',
    "medals-rt prompts --list --modality MRI",
    "medals-rt prompts --groups --modality CT",
)


def prompts_command(
    *,
    sentence: Annotated[
        str | None, typer.Argument(help="The sentence to read.", autocompletion=complete_sentence)
    ] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            help="What the sentence asks for [default: either], or which classes to list."
        ),
    ] = None,
    list_classes: Annotated[bool, typer.Option("--list", help="List the known classes.")] = False,
    list_groups: Annotated[
        bool, typer.Option("--groups", help="List the groups of classes, for --group.")
    ] = False,
    modality: Annotated[
        Modality | None,
        modality_option(
            "Modality of the image, for a sentence that doesn't name it [default: any], or of the "
            "classes to list."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which class a sentence names, or list the classes."""
    if (sentence is not None) + list_classes + list_groups != 1:
        raise InputError(
            'give a sentence, such as "Liver in abdominal CT", or --list, or --groups',
            code="sentence-or-list",
        )
    if sentence is not None:
        _find(sentence, kind, modality, as_json=as_json)
    elif list_classes:
        _list(modality, kind, as_json=as_json)
    else:
        _list_groups(modality, as_json=as_json)


def _find(sentence: str, kind: Kind | None, modality: Modality | None, *, as_json: bool) -> None:
    from medals_rt.prompts.matching import readings
    from medals_rt.prompts.prompt_set import describe

    found = [(each.class_key.kind, describe(each)) for each in readings(sentence, kind, modality)]
    if as_json:
        listed = [reading for _, reading in found]
        out.json(listed if len(listed) > 1 else listed[0])
        return
    for of_kind, reading in found:
        out.line(f"{reading['modality']} {reading['class']}")
        out.line(f"  {of_kind}, id {reading['id']}, named by {reading['matched']!r}")
    if len({reading["modality"] for _, reading in found}) > 1:
        out.line("which of them: name the modality in the sentence, or state it with --modality")
    elif len(found) > 1:
        out.line("which of them: say it with --kind")


def _list(modality: Modality | None, kind: Kind | None, *, as_json: bool) -> None:
    from medals_rt.prompts.classes import classes_of

    known = classes_of(modality, kind)
    if as_json:
        out.json(
            [
                {"modality": key.modality, "kind": key.kind, "class": key.name, "id": key.id}
                for key in known
            ]
        )
        return
    out.table(
        f"{len(known)} classes",
        {"modality": "left", "kind": "left", "id": "right", "class": "left"},
        [[key.modality, key.kind, str(key.id), key.name] for key in known],
    )


def _list_groups(modality: Modality | None, *, as_json: bool) -> None:
    from medals_rt.common.choices import MODALITIES
    from medals_rt.prompts.classes import class_groups

    modalities = MODALITIES if modality is None else (modality,)
    found = [
        (group, each, [key.name for key in keys])
        for group in class_groups(modality)
        for each in modalities
        if (keys := group.keys(each))
    ]
    if as_json:
        out.json(
            [
                {"group": group.name, "also": group.also, "modality": each, "classes": names}
                for group, each, names in found
            ]
        )
        return
    if not sys.stdout.isatty():  # for programs: a class a line
        for group, each, names in found:
            for name in names:
                out.line(f"{group.name}\t{each}\t{name}")
        return
    out.table(
        f"{len({group.name for group, _, _ in found})} groups",
        {"group": "left", "modality": "left", "": "right", "classes": "left"},
        [[group.name, each, str(len(names)), ", ".join(names)] for group, each, names in found],
    )
