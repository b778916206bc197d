"""Amounts of memory as people write them."""

import pytest

from medals_rt.common.byte_sizes import parse_size, size_words
from medals_rt.common.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("6GB", 6 * 10**9),
        ("6G", 6 * 10**9),
        ("6e9", 6 * 10**9),
        ("0.5 kb", 500),
        (" 512 MiB ", 512 * 2**20),
        ("1.5gi", 3 * 2**29),
        ("2TiB", 2**41),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "1.2.3", "5 PB", "GB", "1e400", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_size(text)
    assert refused.value.code == "memory-size-invalid"


@pytest.mark.parametrize(
    ("size", "down", "up"),
    [
        (1, "1 B", "1 B"),
        (1000, "1 KB", "1 KB"),
        (1_049_999, "1 MB", "1.1 MB"),
        (35_410_000, "35.4 MB", "35.5 MB"),
        (5_590_000_000, "5.5 GB", "5.6 GB"),
        (2 * 10**12, "2 TB", "2 TB"),
    ],
)
def test_sizes_in_words_are_never_nothing(size: int, down: str, up: str) -> None:
    assert (size_words(size), size_words(size, up=True)) == (down, up)
    assert parse_size(down) <= size <= parse_size(up)
