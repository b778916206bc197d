"""The thread that owns the model, and the jobs that wait for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Final

from medals_rt.pipeline.segmenter import CaseSegmenter
from medals_serve.jobs import ServedJob
from medals_serve.problems import ServiceError
from medals_serve.settings import RETRY_S

_TO_STOP_S: Final = 120.0
"""What a job that is canceled, and then the model, may take to end. The server ends all the same:
a library that hangs on a broken GPU never comes back."""
_STOPPED: Final = "the server was stopped; run the job again when it is back"


class JobEngine:
    """Runs one job after the other on one model, which one thread opens, uses and closes.

    Parameters
    ----------
    open_model
        Opens the model, in the engine's thread.
    max_queue
        Jobs that may wait.
    """

    def __init__(self, open_model: Callable[[], CaseSegmenter], max_queue: int) -> None:
        self._open_model = open_model
        self._max_queue = max_queue
        self._waiting: deque[ServedJob] = deque()
        self._running: ServedJob | None = None
        self._changed = threading.Condition()
        self._is_stopping = False
        self._opened: Future[CaseSegmenter] = Future()
        self._thread = threading.Thread(target=self._work, name="medals-engine", daemon=True)

    def start(self) -> CaseSegmenter:
        """Open the model, and take jobs from then on. The model is for looking at only.

        Raises
        ------
        MedalsError
            As `Segmenter.open`.
        """
        self._thread.start()
        return self._opened.result()

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken."""
        opened = self._opened.done() and self._opened.exception() is None
        return opened and self._thread.is_alive() and not self._is_stopping

    @property
    def jobs_waiting(self) -> int:
        """Number of jobs in the queue."""
        return len(self._queue())

    @property
    def jobs_running(self) -> int:
        """1 while a job runs, else 0."""
        return int(self._running is not None)

    def submit(self, job: ServedJob) -> None:
        """Put a job into the queue.

        Raises
        ------
        ServiceError
            The queue is full, or the server stops.
        """
        with self._changed:
            if not self.is_ready:
                raise ServiceError(
                    "the server is stopping; try again when it is back",
                    code="server-stopping",
                    status=HTTPStatus.SERVICE_UNAVAILABLE,
                    retry_after_s=RETRY_S,
                )
            self.check_room()
            self._waiting.append(job)
            self._changed.notify_all()

    def check_room(self) -> None:
        """Refuse jobs while the queue is full.

        Raises
        ------
        ServiceError
        """
        waiting = self.jobs_waiting
        if waiting >= self._max_queue:
            raise ServiceError(
                f"{waiting} jobs wait already; try again later",
                code="queue-full",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                retry_after_s=RETRY_S,
            )

    def position(self, job: ServedJob) -> int | None:
        """Return how many jobs will run before this one; None where it doesn't wait."""
        with self._changed:
            waiting = self._queue()
            return waiting.index(job) + self.jobs_running if job in waiting else None

    def _queue(self) -> list[ServedJob]:
        """Jobs that wait; those that were canceled meanwhile leave it."""
        with self._changed:
            self._waiting = deque(each for each in self._waiting if not each.is_over)
            return list(self._waiting)

    def stop(self, grace_s: float) -> None:
        """Take no more jobs, cancel those that wait, and let the one that runs end.

        Parameters
        ----------
        grace_s
            Seconds that it has; then it is canceled.
        """
        with self._changed:
            self._is_stopping = True
            for job in self._waiting:
                job.cancel(_STOPPED)
            self._waiting.clear()
            self._changed.notify_all()
        until = time.monotonic() + grace_s
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(0.1)
            if self._running is None:
                break
        running = self._running
        if running is not None:
            running.cancel(_STOPPED)
        if self._thread.ident is not None:
            self._thread.join(_TO_STOP_S)

    def hurry(self) -> None:
        """Cancel the job that runs, while `stop` waits for it."""
        running = self._running
        if running is not None:
            running.cancel(_STOPPED)

    def _work(self) -> None:
        try:
            segmenter = self._open_model()
        except BaseException as error:  # noqa: BLE001 - raised where `start` was called
            self._opened.set_exception(error)
            return
        with segmenter:
            self._opened.set_result(segmenter)
            while (job := self._next()) is not None:
                job.run(segmenter)
                with self._changed:
                    self._running = None

    def _next(self) -> ServedJob | None:
        """Wait for a job; None once the server stops."""
        with self._changed:
            while not self._is_stopping:
                while self._waiting:
                    job = self._waiting.popleft()
                    if not job.is_over:
                        self._running = job
                        return job
                self._changed.wait()
            return None
