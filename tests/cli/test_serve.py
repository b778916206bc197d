"""What the flags of `medals-rt serve` come to; tests/serve has the service itself."""

import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medals_rt.cli import app
from medals_rt.common import plugins

WORDS = (
    "serve", "--bundle", "somewhere", "--port", "0", "--preset", "release", "--max-upload", "5MB",
    "--host-name", "Scans.Example", "--max-queue", "3", "--idle", "60", "--threads", "1",
    "--cache-memory", "1GiB",
)  # fmt: skip


@pytest.mark.parametrize(("ended_by", "code"), [(None, 0), (signal.SIGINT, 130)])
def test_flags_become_settings(
    monkeypatch: pytest.MonkeyPatch, ended_by: int | None, code: int
) -> None:
    seen: dict[str, Any] = {}

    def serve(options: Any, **given: Any) -> int | None:
        seen.update(given, options=options)
        given["announce"]("serving at somewhere")
        return ended_by

    monkeypatch.setattr(plugins, "load_plugin", lambda *_: serve)
    result = CliRunner().invoke(app, WORDS)
    assert result.exit_code == code, result.output
    assert result.stdout == "serving at somewhere\n"
    options = seen["options"]
    assert (options.bundle, options.threads) == (Path("somewhere"), 1)
    assert options.segment.preset == "release"
    assert (seen["host"], seen["port"], seen["token_file"]) == ("127.0.0.1", 0, None)
    assert seen["host_names"] == ("scans.example",)
    assert seen["max_upload_bytes"] == 5_000_000
    assert (seen["max_queue"], seen["idle_s"]) == (3, 60.0)
    assert seen["cache_bytes"] == 2**30
    assert seen["max_sessions"] is seen["grace_s"] is seen["read_bytes"] is None


def test_nothing_is_an_amount_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(plugins, "load_plugin", lambda *_: lambda _, **given: seen.update(given))
    assert (
        CliRunner().invoke(app, ["serve", "--cache-memory", "0", "--min-free", "0"]).exit_code == 0
    )
    assert seen["cache_bytes"] == seen["min_free_bytes"] == 0


def test_flags_are_fields_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import fields

    from medals_serve.settings import ServeSettings

    seen: dict[str, Any] = {}
    monkeypatch.setattr(plugins, "load_plugin", lambda *_: lambda _, **given: seen.update(given))
    assert CliRunner().invoke(app, WORDS).exit_code == 0
    limits = seen.keys() - {"host", "port", "token_file", "announce", "warn"}
    assert limits <= {each.name for each in fields(ServeSettings)}
