"""Every limit of the service, in one place."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medals_rt.common.limits import MAX_VOXELS

GIB: Final = 2**30
RETRY_S: Final = 10
"""After which a client that was refused for want of room may try again."""


@dataclass(frozen=True)
class ServeSettings:
    """How a server behaves, and what it lets clients have.

    Attributes
    ----------
    token
        What clients must know; None where none is demanded.
    host_names
        Names under which clients may call the server, beside ``localhost`` and IP addresses.
    replica
        Name of this server among several behind a proxy; ids of its sessions begin with it.
    studies
        Address of a DICOMweb server, whose series clients may name instead of sending them.
    data_dir
        Where uploads and results lie while sessions last; None for the folder of temporary files.
    max_requests
        Answered at once; more are answered 503, but for what watches the server.
    max_waiting
        Connections beside those that wait for a request; of more the oldest is closed.
    max_sessions
        Sessions at once.
    max_images, max_masks, max_jobs
        Of each kind in one session.
    max_watchers
        Streams of progress of one session, each of which holds a connection.
    max_queue
        Jobs that wait, of all sessions.
    max_active_jobs
        Jobs of one session that wait or run.
    max_body_bytes
        Of requests that are no uploads.
    max_upload_bytes
        Of one upload.
    max_session_bytes, max_disk_bytes
        On disk, of one session and of all.
    min_free_bytes
        What must stay free on the disk.
    max_voxels
        Of an image.
    cases_bytes
        Voxels of images that are kept in memory for the next job.
    cache_bytes
        What jobs leave of their images for later ones (`medals_rt.FeatureCache`); 0 for nothing,
        None for a quarter of the memory that is free, up to 4 GiB.
    idle_s
        Seconds without a request (or a job that waits or runs) after which a session ends.
    header_s
        Seconds in which a connection must have sent the head of a request.
    body_idle_s, body_s
        Seconds that a request's body, or whoever reads an answer, may pause, and that a body may
        take.
    job_s
        Seconds that a job may run.
    read_s, read_bytes, readers
        Seconds and memory that reading an upload may take in its process, and how many are read at
        once.
    grace_s
        Seconds that a running job has to finish when the server is told to stop.
    last_events_s
        Seconds after that in which watchers of jobs read how these ended.
    """

    token: str | None = field(default=None, repr=False)
    host_names: tuple[str, ...] = ()
    replica: str = ""
    studies: str | None = None
    data_dir: Path | None = None
    max_requests: int = 512
    max_waiting: int = 128
    max_sessions: int = 64
    max_images: int = 32
    max_masks: int = 64
    max_jobs: int = 256
    max_watchers: int = 16
    max_queue: int = 16
    max_active_jobs: int = 4
    max_body_bytes: int = 2**20
    max_upload_bytes: int = 2 * GIB
    max_session_bytes: int = 8 * GIB
    max_disk_bytes: int = 64 * GIB
    min_free_bytes: int = GIB // 2
    max_voxels: int = MAX_VOXELS
    cases_bytes: int = 4 * GIB
    cache_bytes: int | None = None
    idle_s: float = 3600.0
    header_s: float = 20.0
    body_idle_s: float = 30.0
    body_s: float = 1800.0
    job_s: float = 3600.0
    read_s: float = 120.0
    read_bytes: int = 8 * GIB
    readers: int = 2
    grace_s: float = 20.0
    last_events_s: float = 1.0
