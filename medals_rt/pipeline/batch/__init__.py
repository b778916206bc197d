"""Many cases: found, run side by side by one process or many, continued after an interruption.

`find` says which cases there are, `plan` what is to be done with each, `paths` where its files go,
`claims` who does what, `records` what is done already, `run` does the work of one process, and
`summary` writes down how it went. `shared_cells` lets processes of one or many machines claim cases
in a shared folder, and `workers` starts them, one a GPU; `ray_cluster` has them on a cluster.
`remote_files` brings files from URLs and back. `start` does it all.
"""

from medals_rt.pipeline.batch.plan import Batch, BatchCase, BatchPlan, plan_batch
from medals_rt.pipeline.batch.records import RESULT_CHANGED, Entry
from medals_rt.pipeline.batch.run import Listener, Silent, run_cases
from medals_rt.pipeline.batch.start import BatchResult, prepared_batch, run_batch

__all__ = [
    "RESULT_CHANGED",
    "Batch",
    "BatchCase",
    "BatchPlan",
    "BatchResult",
    "Entry",
    "Listener",
    "Silent",
    "plan_batch",
    "prepared_batch",
    "run_batch",
    "run_cases",
]
