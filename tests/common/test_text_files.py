"""Small text files: what is read of them, and what is refused."""

from pathlib import Path

import pytest

from medals_rt.common.errors import InputError, MissingFileError, PromptError
from medals_rt.common.text_files import read_text
from tests.errors import raises


def read(path: Path, error: type[InputError] = InputError) -> str:
    return read_text(path, "list of scans", most_bytes=8, form="list-form", error=error)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_text_is_read_with_a_byte_order_mark_or_without(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a").write_bytes(start + "é\n".encode())
    assert read(tmp_path / "a") == "é\n"


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with raises(MissingFileError, "list-of-scans-missing", path):
            read(path)


@pytest.mark.parametrize("kind", [InputError, PromptError])
def test_what_is_no_small_text_is_refused(tmp_path: Path, kind: type[InputError]) -> None:
    (tmp_path / "long").write_bytes(b"9 letters")
    with raises(kind, "list-of-scans-too-large", "long", 8):
        read(tmp_path / "long", kind)
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with raises(kind, "list-form", "latin", "UTF-8"):
        read(tmp_path / "latin", kind)
