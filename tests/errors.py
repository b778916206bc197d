"""Errors that a test expects: by their type and code, never by their wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from medals_rt.common.errors import MedalsError

E = TypeVar("E", bound=MedalsError)


@contextmanager
def raises(kind: type[E], code: str, *names: object) -> Iterator[pytest.ExceptionInfo[E]]:
    """Expect an error of this kind and code whose message names `names`.

    `names` are what the caller needs to find the fault: the file, member, class or figure. The
    sentence around them is tested in `tests/cli/test_messages.py`.
    """
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    message = str(caught.value)
    assert [name for name in names if str(name) not in message] == [], message
