"""A case from request to result: segmenter, job, report, batch."""
