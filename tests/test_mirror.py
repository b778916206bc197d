"""Tests are found by name: `medals_rt/x/module.py` is tested in `tests/x/test_module.py`."""

from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE, TESTS = ROOT / "medals_rt", ROOT / "tests"

BY_COMMAND = "a command is run and its answers read, as a user would"
BY_USE = "too small for tests of its own: it fails where it is used"
BY_PART = "a part of what the test is named after, and tested through it"
ELSEWHERE: dict[str, tuple[str, str]] = {
    "bundle/hub_address.py": ("bundle/test_hub.py", BY_PART),
    "bundle/hub_requests.py": ("bundle/test_hub.py", BY_PART),
    "bundle/manifest.py": ("bundle/test_bundle.py", BY_PART),
    "bundle/stage_spec.py": ("planning/test_geometry.py", BY_USE),
    "bundle/sources.py": ("export/test_export_cli.py", BY_COMMAND),
    "cli/batch.py": ("pipeline/batch/test_batch.py", BY_COMMAND),
    "cli/bench.py": ("tools/bench/test_run.py", BY_COMMAND),
    "cli/build.py": ("export/test_engines.py", BY_COMMAND),
    "cli/doctor.py": ("tools/doctor/test_diagnosis.py", BY_COMMAND),
    "cli/download.py": ("bundle/test_hub.py", BY_COMMAND),
    "cli/evaluate.py": ("tools/evaluate/test_evaluation.py", BY_COMMAND),
    "cli/export.py": ("export/test_export_cli.py", BY_COMMAND),
    "cli/info.py": ("cli/test_commands.py", BY_COMMAND),
    "cli/listen.py": ("serve/node/test_command.py", BY_COMMAND),
    "cli/prompts.py": ("cli/test_commands.py", BY_COMMAND),
    "cli/verify.py": ("tools/verify/test_verify.py", BY_COMMAND),
    "cli/version.py": ("cli/test_commands.py", BY_COMMAND),
    "common/limits.py": ("prompts/test_prompt_set.py", BY_USE),
    "common/notes.py": ("pipeline/test_report.py", BY_USE),
    "common/plugins.py": ("test_layout.py", BY_USE),
    "common/stopwatch.py": ("inference/test_stage.py", BY_USE),
    "common/templates.py": ("pipeline/batch/test_page.py", BY_USE),
    "common/typing.py": ("test_package.py", "types alone"),
    "inference/cascade.py": ("test_end_to_end.py", "whole cases against the released pipeline"),
    "inference/graph_chains.py": ("inference/test_network.py", BY_PART),
    "inference/hybrid_prompts.py": ("pipeline/test_segmenter.py", BY_PART),
    "io/case.py": ("io/test_formats.py", BY_PART),
    "io/dicom/files.py": ("io/dicom/test_case.py", BY_PART),
    "io/dicom/formats.py": ("io/test_registry.py", BY_PART),
    "io/dicom/headers.py": ("io/dicom/test_seg.py", BY_PART),
    "io/dicom/series.py": ("io/dicom/test_case.py", BY_PART),
    "io/dicom/slices.py": ("io/dicom/test_case.py", BY_PART),
    "io/dicom/web_address.py": ("io/dicom/test_web.py", BY_PART),
    "io/dicom/web_server.py": ("io/dicom/test_web.py", BY_PART),
    "io/format.py": ("io/test_registry.py", BY_PART),
    "io/metaimage.py": ("io/test_registry.py", "all formats are held to the same tests"),
    "io/nifti.py": ("io/test_formats.py", "all formats are held to the same tests"),
    "io/nifti_geometry.py": ("io/test_registry.py", BY_PART),
    "io/nrrd.py": ("io/test_formats.py", "all formats are held to the same tests"),
    "io/voxel_data.py": ("io/test_registry.py", BY_PART),
    "pipeline/batch/records.py": ("pipeline/batch/test_kept.py", BY_PART),
    "pipeline/batch/supervision.py": ("pipeline/batch/test_workers.py", BY_PART),
    "pipeline/batch/run.py": ("pipeline/batch/test_batch.py", BY_COMMAND),
    "pipeline/case_setup.py": ("pipeline/test_plan_case.py", BY_PART),
    "pipeline/csv_tables.py": ("pipeline/test_class_statistics.py", BY_USE),
    "pipeline/job_inputs.py": ("pipeline/test_job.py", BY_PART),
    "pipeline/corrected_run.py": ("cli/test_run.py", BY_COMMAND),
    "pipeline/group_run.py": ("pipeline/test_segmenter.py", BY_PART),
    "pipeline/job_outputs.py": ("pipeline/test_job.py", BY_PART),
    "pipeline/job_request.py": ("pipeline/test_job.py", BY_PART),
    "pipeline/job_writing.py": ("pipeline/test_job.py", BY_PART),
    "planning/stage_plan.py": ("planning/test_geometry.py", BY_PART),
    "planning/window_pass.py": ("inference/test_refinement.py", BY_USE),
    "preprocessing/interpolation.py": ("preprocessing/test_resampling.py", BY_PART),
    "preprocessing/label_interpolation.py": ("preprocessing/test_resampling.py", BY_PART),
    "prompts/candidates.py": ("prompts/test_matching.py", BY_PART),
    "prompts/refusals.py": ("prompts/test_matching.py", BY_PART),
    "prompts/word_roles.py": ("prompts/test_matching.py", BY_PART),
    "runners/base.py": ("runners/test_runners.py", "all runners are held to the same tests"),
    "runners/cuda.py": ("runners/test_on_gpu.py", BY_PART),
    "runners/engine_check_worker.py": ("runners/test_engine_check.py", BY_PART),
    "runners/onnxruntime.py": ("runners/test_runners.py", "all runners are held to the same tests"),
    "runners/openvino_compiled.py": ("runners/test_runners.py", BY_PART),
    "runners/winograd/partition.py": ("runners/winograd/test_split_model.py", "every chain, whole"),
    "runners/winograd/ports.py": ("runners/winograd/test_split_model.py", BY_PART),
    "runners/openvino.py": ("runners/test_runners.py", "all runners are held to the same tests"),
    "runners/openvino_cache.py": ("runners/test_runners.py", BY_PART),
    "runners/registry.py": ("runners/test_selection.py", BY_PART),
    "runners/tensorrt_library.py": ("runners/test_tensorrt.py", BY_PART),
    "tools/bench/backends.py": ("tools/bench/test_run.py", BY_PART),
    "tools/bench/plots.py": ("tools/bench/test_pages.py", BY_PART),
    "tools/bench/roofline.py": ("tools/bench/test_arithmetic.py", BY_PART),
    "tools/bench/scaling.py": ("tools/bench/test_run.py", BY_PART),
    "tools/bench/target.py": ("tools/bench/test_run.py", BY_PART),
    "tools/bench/worker.py": ("tools/bench/test_run.py", BY_PART),
    "tools/evaluate/scores.py": ("tools/evaluate/test_evaluation.py", BY_PART),
    "tools/evaluate/surface.py": ("tools/evaluate/test_metrics.py", BY_PART),
    "tools/verify/cases.py": ("tools/verify/test_comparison.py", BY_PART),
    "tools/verify/graphs.py": ("tools/verify/test_comparison.py", BY_PART),
    "tools/verify/references.py": ("tools/verify/test_records.py", BY_PART),
    "tools/verify/passes.py": ("tools/verify/test_verify.py", BY_PART),
}
"""Modules whose tests bear another name: module, its tests, and why. Better is a line less."""


def own_tests(module: str) -> Path:
    path = TESTS / module
    return path.with_name(f"test_{path.name}")


MODULES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if not path.name.startswith("_")
)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_tests_of_its_name(module: str) -> None:
    if own_tests(module).is_file():
        assert module not in ELSEWHERE, "it has tests of its own: take its line out of ELSEWHERE"
        return
    name = own_tests(module).relative_to(ROOT)
    assert module in ELSEWHERE, f"write {name}, or say in ELSEWHERE what covers it, and why"
    tests, _ = ELSEWHERE[module]
    assert (TESTS / tests).is_file(), f"{tests}, which ELSEWHERE names, is gone"


def test_what_is_named_here_is_there() -> None:
    assert ELSEWHERE.keys() - MODULES == set(), "take these out of ELSEWHERE"
