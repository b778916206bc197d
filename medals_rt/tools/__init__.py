"""Around the pipeline: evaluate, verify, bench, doctor."""
