"""The file of a DICOM node: who may send, what is segmented in what, and where results go."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from medals_rt.common.byte_sizes import parse_size
from medals_rt.common.choices import DicomModality
from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.common.json_text import validation_words
from medals_rt.io.dicom.web_address import WebAddress, is_web_address
from medals_rt.pipeline.job_outputs import SEGMENTATIONS
from medals_rt.pipeline.options import PromptSource

ResultFormat: TypeAlias = Literal["dicom-seg", "dicom-labelmap-seg", "rtstruct", "sr"]
"""What a node sends: names of formats of `medals_rt.io.registry`, and reports about a SEG."""

Title: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")
]
"""An AE title: 1 to 16 printable characters without a backslash, no space at either end."""

_Port: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another DICOM node, which results are sent to."""

    host: str
    port: _Port
    tls: bool = False


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files (PEM) for encrypted associations: ours, and the authority that others must show."""

    certificate: str
    key: str
    authority: str

    def for_server(self) -> ssl.SSLContext:
        """Let only those in who show a certificate of the authority."""
        return self._loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def for_client(self) -> ssl.SSLContext:
        """Talk only to those who show a certificate of the authority, for their host's name."""
        return self._loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"the certificates of [tls] can't be used ({error}); give PEM files",
                code="certificate-invalid",
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is segmented in which series. Each rule that fits a series makes results of its own.

    Attributes
    ----------
    modality
        DICOM's name of it, such as ``"CT"``.
    body_part, description
        Regular expressions, found anywhere in letters of either case: in the body part examined;
        in the descriptions of study and series or the name of the protocol. Without one, all fit.
    prompts, lesions
        Sentences, as for ``--prompt`` and ``--lesion``.
    groups
        Groups of classes, as for ``--group``.
    select
        As for ``--select``.
    outputs
        What is made of the labels.
    send_to
        Titles of peers, and addresses of DICOMweb servers.
    """

    modality: DicomModality
    send_to: tuple[str, ...]
    body_part: str = ""
    description: str = ""
    prompts: tuple[str, ...] = ()
    lesions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    outputs: Annotated[tuple[ResultFormat, ...], msgspec.Meta(min_length=1)] = ("dicom-seg",)

    @property
    def source(self) -> PromptSource:
        """Its prompts, as jobs have them."""
        return PromptSource(sentences=self.prompts, lesions=self.lesions, groups=self.groups)

    def fits(self, header: Any) -> bool:
        """Whether it is for a series, by the header of one of its images."""
        texts = ("StudyDescription", "SeriesDescription", "ProtocolName")
        found = (
            (self.body_part, str(header.get("BodyPartExamined") or "")),
            (self.description, "\n".join(str(header.get(name) or "") for name in texts)),
        )
        return str(header.get("Modality")) == self.modality and all(
            re.search(wanted, text, re.IGNORECASE) for wanted, text in found if wanted
        )


class NodeConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes
    ----------
    title
        Our AE title; associations that call another are rejected.
    callers
        AE titles that may call; all others are rejected.
    folder
        For what was received and made.
    host, port
        Where we listen.
    quiet_seconds
        A series is complete when for so long no image of it came.
    max_waiting
        Series that may wait for their results; more are refused with "out of resources".
    max_disk
        What all files may take together, such as ``"100GB"``; more are refused likewise.
    retain_hours
        How long images and results stay after they were delivered.
    peers
        Nodes that results are sent to, by their AE title.
    rules
        What is done.
    tls
        For encrypted associations; without it, there are none.
    """

    title: Title
    callers: Annotated[tuple[Title, ...], msgspec.Meta(min_length=1)]
    folder: str
    rules: Annotated[dict[str, Rule], msgspec.Meta(min_length=1)]
    host: str = "127.0.0.1"
    port: _Port = 11112
    quiet_seconds: _Positive = 30.0
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 100
    max_disk: str = "100GB"
    retain_hours: Annotated[float, msgspec.Meta(ge=0)] = 24.0
    peers: dict[Title, Peer] = {}
    tls: Tls | None = None

    @property
    def max_bytes(self) -> int:
        """`max_disk` as a number."""
        return parse_size(self.max_disk)

    @property
    def receivers(self) -> frozenset[str]:
        """All who get results."""
        return frozenset(to for rule in self.rules.values() for to in rule.send_to)

    def rules_for(self, header: Any) -> dict[str, Rule]:
        """Return the rules that fit a series, by name."""
        return {name: rule for name, rule in self.rules.items() if rule.fits(header)}


_RULE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def read_configuration(path: Path) -> NodeConfiguration:
    """Read and check the file of a node, as far as it can be checked without a model.

    Raises
    ------
    InputError
        It isn't there, is no TOML, or says something that can't be.
    """
    try:
        configuration = msgspec.toml.decode(path.read_bytes(), type=NodeConfiguration)
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no {path}; check the path") from error
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path.name} can't be used: {validation_words(error)}",
            code="configuration-invalid",
        ) from error
    parse_size(configuration.max_disk)
    for name, rule in configuration.rules.items():
        _check_rule(_Place(path.name, name), rule, configuration)
    if configuration.tls is None and any(peer.tls for peer in configuration.peers.values()):
        raise InputError(
            f"{path.name}: a peer wants TLS, but there is no [tls] with our certificate",
            code="configuration-invalid",
        )
    return configuration


@dataclass(frozen=True)
class _Place:
    file: str
    rule: str

    def refuse(self, why: str) -> InputError:
        return InputError(f"{self.file}, rule {self.rule}: {why}", code="configuration-invalid")


def _check_rule(place: _Place, rule: Rule, configuration: NodeConfiguration) -> None:
    if not _RULE_NAME.fullmatch(place.rule):
        raise place.refuse("its name names files; use letters, digits, - and _")
    for pattern in (rule.body_part, rule.description):
        try:
            re.compile(pattern)
        except re.error as error:
            raise place.refuse(f"{pattern!r} is no regular expression ({error})") from error
    if not (rule.prompts or rule.lesions or rule.groups):
        raise place.refuse("it names no prompts, lesions or groups")
    if "sr" in rule.outputs and not set(rule.outputs) & set(SEGMENTATIONS):
        raise place.refuse("a report (sr) refers to a SEG; add dicom-seg to its outputs")
    if not rule.send_to:
        raise place.refuse("send_to names nobody who gets the results")
    for receiver in rule.send_to:
        if is_web_address(receiver):
            WebAddress.parse(receiver)
        elif receiver not in configuration.peers:
            raise place.refuse(f"{receiver} is none of the peers, nor a dicomweb+ address")
