"""Children: real ones, that end in every way there is."""

import os
from pathlib import Path

import pytest

from medals_rt.common.subprocesses import Ended, run_python


def test_lines_of_both_outputs_and_the_exit_code() -> None:
    code = "import sys; print(' a\\n\\nb'); sys.exit('c')"
    assert run_python(["-c", code], 60) == Ended(1, None, ("a", "b"), ("c",))


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(("number", "name"), [(6, "SIGABRT"), (9, "SIGKILL"), (40, "signal 40")])
def test_the_signal_that_ended_it(number: int, name: str) -> None:
    ended = run_python(["-c", f"import os; os.kill(os.getpid(), {number})"], 60)
    assert (ended.code, ended.signal) == (-number, name)


def test_what_takes_too_long_is_stopped() -> None:
    assert run_python(["-c", "import time; time.sleep(60)"], 0.2) == Ended(None, None, (), ())


def test_it_finds_the_same_modules_and_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(
        "import sys; print(repr(sys.stdin.read()))", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run_python(["-m", "only_here"], 60).said == ("''",)
