"""Figures as Prometheus reads them."""

from medals_serve.metrics import Metrics


def test_figures_keep_all_their_digits() -> None:
    """Else bytes and counts stand still where they grow."""
    metrics = Metrics()
    metrics.count("medals_uploaded_bytes_total", 2**40)
    metrics.count("medals_uploaded_bytes_total", 1)
    metrics.count("medals_job_seconds_total", 0.1)
    metrics.count("medals_jobs_total", status="done")
    metrics.watch({"medals_disk_bytes": lambda: 1234567890})
    lines = metrics.text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'medals_jobs_total{status="done"} 1',
        "medals_job_seconds_total 0.1",
        "medals_uploaded_bytes_total 1099511627777",
        "medals_disk_bytes 1234567890",
    ]
