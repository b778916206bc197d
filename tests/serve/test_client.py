"""The client in Python: what it does beside asking."""

import pytest

from tests.serve.serving import Running


def test_no_proxy_gets_what_is_for_this_machine(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody is there
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with served.client() as client:
        assert client.model()
