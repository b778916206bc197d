"""Many cases with one opened model: found, run side by side, taken up again after an interruption.

`find` says what there is to do, `lock` keeps other batches out, `records` says what is done
already, `pipeline` does the rest, and `summary` writes down how it went.
"""

from medals_rt.pipeline.batch.find import BatchCase, BatchPlan, plan_batch, unread_words
from medals_rt.pipeline.batch.lock import lock_folders
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.batch.run import Listener, run_batch
from medals_rt.pipeline.batch.summary import summary_files, write_summaries

__all__ = [
    "BatchCase",
    "BatchPlan",
    "Entry",
    "Listener",
    "lock_folders",
    "plan_batch",
    "run_batch",
    "summary_files",
    "unread_words",
    "write_summaries",
]
