"""Amounts of memory as people write them."""

import pytest

from medals_rt.common.byte_sizes import parse_size
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
