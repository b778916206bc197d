"""Many cases: found, run side by side by one process or many, continued after an interruption.

`find` says which cases there are, `plan` what is to be done with each, `paths` where its files go,
`claims` who does what, `records` what is done already, `run` does the work of one process, and
`summary` writes down how it went. `shared_cells` lets processes of one or many machines claim cases
in a shared folder, and `workers` starts them, one a GPU; `ray_cluster` has them on a cluster.
`store` brings files from URLs and back.
"""

from medals_rt.pipeline.batch.claims import BatchStanding, Cells, settle_once, standing
from medals_rt.pipeline.batch.parts import parse_part
from medals_rt.pipeline.batch.plan import BatchCase, BatchPlan, BesideLabels, plan_batch
from medals_rt.pipeline.batch.ray_cluster import run_on_ray
from medals_rt.pipeline.batch.records import RESULT_CHANGED, Entry
from medals_rt.pipeline.batch.run import Listener, run_batch
from medals_rt.pipeline.batch.shared_cells import claims_file, identity_of, share_folders
from medals_rt.pipeline.batch.store import staged
from medals_rt.pipeline.batch.summary import summary_files, write_tables
from medals_rt.pipeline.batch.workers import (
    Place,
    places_on_cores,
    places_on_gpu,
    places_on_gpus,
    run_workers,
)

__all__ = [
    "RESULT_CHANGED",
    "BatchCase",
    "BatchPlan",
    "BatchStanding",
    "BesideLabels",
    "Cells",
    "Entry",
    "Listener",
    "Place",
    "claims_file",
    "identity_of",
    "parse_part",
    "places_on_cores",
    "places_on_gpu",
    "places_on_gpus",
    "plan_batch",
    "run_batch",
    "run_on_ray",
    "run_workers",
    "settle_once",
    "share_folders",
    "staged",
    "standing",
    "summary_files",
    "write_tables",
]
