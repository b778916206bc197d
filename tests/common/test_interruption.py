"""Windows that are ended in the middle, on every library, and the ones after them."""

import faulthandler
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common import interruption
from medals_rt.common.interruption import (
    Background,
    check_interruption,
    interrupted_by,
    run_interruptibly,
)
from medals_rt.inference.network import PassInput, StageNetwork
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("all_cores")

LIBRARIES = {
    "openvino": {"runner": "openvino", "precision": "fp32", "convolution": "direct"},
    "winograd": {"runner": "openvino", "precision": "fp32", "convolution": "winograd"},
    "onnxruntime": {"runner": "onnxruntime", "precision": "fp32"},
}

WIDTH = 64
"""Of the demo model's queries."""


class EndedError(Exception):
    """What a check raises here."""


def after(calls: int) -> Callable[[], None]:
    """A check that ends the work when it is called so often."""
    left = [calls]

    def check() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise EndedError

    return check


@pytest.fixture(params=LIBRARIES)
def network(request: pytest.FixtureRequest) -> Iterator[StageNetwork]:
    if request.param == "winograd":
        pytest.importorskip("llvmlite", reason="compiles convolutions")
    bundle = Bundle.open(ROOT / "engines" / "demo", verify=False)
    with StageNetwork.open(bundle, 2, **LIBRARIES[request.param]) as found:
        yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look so often that there are many looks in a window."""
    monkeypatch.setattr(interruption, "POLL_S", 0.001)


def predicted(network: StageNetwork, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    image = rng.random((1, 1, *network.spec.window_hwd), dtype=np.float32) * 255
    queries = rng.standard_normal((3, WIDTH), dtype=np.float32)
    return np.concatenate([part for _, part in network.predict(PassInput(image, queries, None))])


@pytest.mark.usefixtures("impatient")
def test_a_window_ends_in_its_middle_and_the_next_is_right(network: StageNetwork) -> None:
    """To the bit, wherever the one before was ended."""
    expected = predicted(network)
    for calls in (1, 2, 4, 7):
        with interrupted_by(after(calls)), pytest.raises(EndedError):
            predicted(network, seed=6)
        np.testing.assert_array_equal(predicted(network), expected)


@pytest.mark.usefixtures("impatient")
def test_signals_are_handled_in_the_middle_of_a_window(network: StageNetwork) -> None:
    """As Ctrl-C is, which a call into a library would put off."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread alone")
    expected = predicted(network)
    with alarm(0.01), pytest.raises(EndedError):
        [predicted(network) for _ in range(1000)]
    np.testing.assert_array_equal(predicted(network), expected)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise EndedError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_library_is_waited_for_after_it_was_canceled() -> None:
    """It uses the caller's memory until then, also if Ctrl-C comes again meanwhile."""
    said: list[str] = []

    def wait(seconds: float | None) -> bool:
        said.append("waits" if seconds is not None else "waits for the end")
        if said.count("waits for the end") == 1:
            raise KeyboardInterrupt
        if said.count("waits for the end") == 2:
            raise RuntimeError("it was canceled")
        return False

    with interrupted_by(after(3)), pytest.raises(EndedError):
        run_interruptibly(lambda: said.append("starts"), wait, lambda: said.append("canceled"))
    assert said == ["starts", "waits", "waits", "canceled", *["waits for the end"] * 2]


def test_what_was_ended_before_is_not_started() -> None:
    started: list[str] = []
    with interrupted_by(after(1)), pytest.raises(EndedError):
        run_interruptibly(lambda: started.append("x"), lambda _: True, lambda: None)
    assert started == []


def test_errors_of_the_library_itself_come_through() -> None:
    def wait(_: float | None) -> bool:
        raise RuntimeError("of the library")

    with pytest.raises(RuntimeError, match="of the library"):
        run_interruptibly(lambda: None, wait, lambda: None)


def test_the_innermost_check_holds_and_others_threads_have_none() -> None:
    check_interruption()
    with interrupted_by(after(1)):
        with interrupted_by(lambda: None):
            check_interruption()
        other = threading.Thread(target=check_interruption)
        other.start()
        other.join()
        with pytest.raises(EndedError):
            check_interruption()
    check_interruption()


def test_work_in_the_background_is_interrupted_at_any_moment() -> None:
    """Also where a lock was just taken, of which there are many in so short a work."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread alone")
    background, rng = Background(2, "test"), np.random.default_rng(3)
    faulthandler.dump_traceback_later(100, exit=True)  # else both sides would wait for ever

    def go_on() -> None:
        while True:
            assert background.run([lambda: 1, lambda: 2], int) == [1, 2]

    try:
        for moment in rng.uniform(1e-5, 1e-3, 400):
            with pytest.raises(EndedError), alarm(float(moment)):
                go_on()
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert background.run([lambda: 3], int) == [3]
    background.close()


def test_what_fails_in_the_background_fails_here() -> None:
    background = Background(1, "test")
    with pytest.raises(ZeroDivisionError):
        background.run([lambda: 1 // 0], int)
    background.close()
