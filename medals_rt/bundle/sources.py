"""What an export is made of, found on disk or fetched from a hub, with its terms.

>>> sources = ExportSources()
>>> files = sources.checkpoints(Path("hf:OWNER/NAME@COMMIT"))
>>> encoder, biolord = sources.text_encoder(files)
>>> export_bundle(files.coarse, files.fine, TextSource(encoder, biolord), "engines/mine",
...               notice=sources.notice, terms=sources.terms)
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from medals_rt.bundle.hub import LocalFiles, local_files
from medals_rt.bundle.hub_address import known_as, known_weights
from medals_rt.bundle.released import (
    CheckpointFile,
    ReleasedFiles,
    Terms,
    find_released,
    terms_of,
)
from medals_rt.common.errors import InputError
from medals_rt.common.progress import Progress


class ExportSources:
    """Files that may be addresses on a hub, fetched as they are asked for, with their terms.

    Parameters
    ----------
    progress
        Called while files are fetched.
    unpinned
        Whether addresses without a commit are taken.
    remark
        Told which commit was taken of such an address.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        *,
        unpinned: bool = False,
        remark: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._progress = progress
        self._unpinned = unpinned
        self._remark = remark
        self._terms: dict[str, Terms] = {}
        self._notices: list[str] = []

    def find(self, named: Path) -> LocalFiles:
        """Find a file or folder, and note the terms of what comes from a hub or is a folder.

        Raises
        ------
        InputError, MissingFileError, DownloadError, MissingDependencyError
            As `hub.local_files`.
        """
        found = local_files(named, self._progress, unpinned=self._unpinned)
        if found.address is None:
            if found.path.is_dir():
                terms = terms_of(found.path, found.path.resolve().name)
                if terms.license or terms.texts:
                    self._terms[str(found.path)] = terms
            return found
        if self._unpinned:
            self._remark(f"taken: {found.address}")
        known = known_as(found.address)
        repository = dataclasses.replace(found.address, path="")
        self._terms[str(repository)] = terms_of(
            found.repository, str(repository), None if known is None else known.license
        )
        if known is not None and known.notice is not None:
            self._notices.append(known.notice)
        return found

    @property
    def terms(self) -> tuple[Terms, ...]:
        """Of everything found, each source once."""
        return tuple(self._terms.values())

    @property
    def notice(self) -> str | None:
        """What is to be said of the weights' results where the user says nothing."""
        return "; ".join(dict.fromkeys(self._notices)) or None

    def checkpoints(
        self,
        folder: Path | None = None,
        stage1: CheckpointFile | None = None,
        stage2: CheckpointFile | None = None,
    ) -> ReleasedFiles:
        """Find both checkpoints, and the text encoder and BioLORD that lie with them.

        Parameters
        ----------
        folder
            Folder or address that holds both, which are found by name or content.
        stage1, stage2
            Both of them, which then lie in `folder` if that is given.

        Raises
        ------
        InputError
            One is missing (code `checkpoint-missing`), or as `find` and `released.find_released`.
        """
        if folder is not None and (stage1 is None) == (stage2 is None):
            found = self.find(folder)
            released = find_released(found.path, stage1, stage2)
            if found.address is None:
                return released
            origin = str(found.address)
            coarse, fine = (
                dataclasses.replace(each, origin=origin)
                for each in (released.coarse, released.fine)
            )
            return dataclasses.replace(released, coarse=coarse, fine=fine)
        if stage1 is None or stage2 is None:
            raise InputError(
                "checkpoints are missing: name --stage1 and --stage2, or --from with a folder or "
                "an address that holds both (and with it both or neither of --stage1 and --stage2)",
                code="checkpoint-missing",
            )
        return ReleasedFiles(self._fetched(stage1), self._fetched(stage2))

    def text_encoder(
        self, files: ReleasedFiles, encoder: Path | None = None, biolord: Path | None = None
    ) -> tuple[Path, Path]:
        """Find the text encoder's checkpoint, and the folder of BioLORD.

        Parameters
        ----------
        files
            What lies with the checkpoints.
        encoder, biolord
            Taken instead; BioLORD comes from where it was published if neither has it.

        Raises
        ------
        InputError
            One is missing (code `text-embeddings-missing`), or as `find`.
        """
        encoder = encoder or files.text_encoder
        if encoder is None:
            raise InputError(
                "text embeddings need the text encoder's checkpoint, and none lies with the "
                "others: name it by --text-encoder, or name text embeddings by --bank",
                code="text-embeddings-missing",
            )
        folder = biolord or files.biolord or _published_biolord()
        return self.find(encoder).path, self.find(folder).path

    def _fetched(self, file: CheckpointFile) -> CheckpointFile:
        found = self.find(file.path)
        origin = None if found.address is None else str(found.address)
        return dataclasses.replace(file, path=found.path, origin=origin)


def _published_biolord() -> Path:
    """Return the address where BioLORD was published.

    Raises
    ------
    InputError
        None is known.
    """
    for each in known_weights():
        if each.part == "biolord":
            return Path(each.address)
    raise InputError(
        "text embeddings need BioLORD's configuration and tokenizer: name them by --biolord DIR",
        code="text-embeddings-missing",
    )
