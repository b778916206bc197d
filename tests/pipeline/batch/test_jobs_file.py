"""The jobs file: typed rows from JSON and CSV, and errors that name the row."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.errors import InputError
from medals_rt.pipeline.batch.jobs_file import JobRow, grid_of_row, read_jobs, source_of, stated
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest
from tests.errors import raises


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"input": "a.npz", "sentences": ["Liver in CT", "Spleen, CT"], "seed": 3},
        {"input": "b, c.npz", "prompts": "p.json", "window": "soft tissue", "output": "b"},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "jobs.csv").write_text(
        "\ufeffinput, sentences,seed,prompts,window,output\r\n"
        'a.npz,"Liver in CT; Spleen, CT;",3,,,\r\n'
        ",,,,,\r\n"
        '"b, c.npz",,, p.json,soft tissue,b\r\n',
        encoding="utf-8",
    )
    (tmp_path / "more.csv").write_text(
        "input,lesions,select,postprocess\na,Liver tumors in CT;,ECHO=2; SERIES=1,all\n",
        encoding="utf-8",
    )
    assert read_jobs(tmp_path / "more.csv") == (
        JobRow(
            "a",
            lesions=("Liver tumors in CT",),
            select=("ECHO=2", "SERIES=1"),
            postprocess="all",
        ),
    )
    expected = (
        JobRow("a.npz", sentences=("Liver in CT", "Spleen, CT"), seed=3),
        JobRow("b, c.npz", prompts="p.json", window="soft tissue", output="b"),
    )
    assert read_jobs(tmp_path / "jobs.json") == expected
    assert read_jobs(tmp_path / "jobs.csv") == expected


def test_a_table_whose_cells_are_separated_by_semicolons_is_read(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        'input;sentences;crop\r\na.npz;"Liver in CT; Spleen, CT";5\r\n', encoding="utf-8"
    )
    (row,) = read_jobs(tmp_path / "jobs.csv")
    assert row == JobRow("a.npz", sentences=("Liver in CT", "Spleen, CT"), crop=5.0)


def test_a_wrong_value_is_told_without_the_list_of_all_members(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text("input,crop\na.npz,much\n", encoding="utf-8")
    with raises(InputError, "job-invalid") as caught:
        read_jobs(tmp_path / "jobs.csv")
    assert str(caught.value) == "jobs.csv, line 2: crop: a number is wanted, not text"


def test_options_of_the_algorithm_in_rows(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        "input,stages,block_sizes,threshold,mirrored,iterations\na,fine,4;8,0.4,true,2\n",
        encoding="utf-8",
    )
    (row,) = read_jobs(tmp_path / "jobs.csv")
    assert SegmentOptions(**stated(row, SegmentOptions)) == SegmentOptions(
        stages="fine", block_sizes=(4, 8), threshold=0.4, mirrored=True, iterations=2
    )
    (tmp_path / "jobs.json").write_text('[{"input": "a", "overlap": 2}]', encoding="utf-8")
    with raises(InputError, "overlap-out-of-range", "job 1"):
        read_jobs(tmp_path / "jobs.json")


def test_outputs_and_their_grid_in_rows(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        "input,crop,output_spacing,split,sr,probabilities,instances,format,mesh_reduction\n"
        'a,5,0.8;0.8;2,true,false,1,,glb,0.5\nb,,"1,1,3",,,,true,same,\nc,,2,,,,,,\nd,,,,,,,,\n',
        encoding="utf-8",
    )
    first, second, third, fourth = read_jobs(tmp_path / "jobs.csv")
    assert (first.split, first.sr, first.probabilities, first.instances) == (
        True, False, True, None
    )  # fmt: skip
    assert (first.format, first.mesh_reduction, second.format) == ("glb", 0.5, "same")
    common = GridRequest((3.0, 3.0, 3.0), 9.0)
    assert grid_of_row(first, common) == GridRequest((0.8, 0.8, 2.0), 5.0)
    assert grid_of_row(second, common) == GridRequest((1.0, 1.0, 3.0), 9.0)
    assert grid_of_row(third, common) == GridRequest((2.0, 2.0, 2.0), 9.0)
    assert grid_of_row(fourth, common) == common
    (tmp_path / "jobs.json").write_text('[{"input": "a", "output_spacing": [2]}]', encoding="utf-8")
    (row,) = read_jobs(tmp_path / "jobs.json")
    assert grid_of_row(row, GridRequest()) == GridRequest((2.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('[{"input": "a.npz"}, {"output": "b"}]', ("job-invalid", "job 2", "'input'")),
        ('[{"input": "a.npz", "colour": 1}]', ("job-invalid", "job 1", "'colour'")),
        ('[{"input": "a.npz", "seed": "3"}]', ("job-invalid", "job 1", "seed")),
        ('[{"input": "a.npz", "seed": -1}]', ("job-invalid", "job 1", "seed")),
        ('[{"input": ""}]', ("job-invalid", "job 1")),
        ('[{"input": "a.npz", "sentences": []}]', ("job-invalid", "job 1")),
        ('[{"input": "a.npz", "kind": "organ"}]', ("job-invalid", "job 1", "organ")),
        ('[{"input": "a.npz", "window": "liver"}]', ("window-unknown", "job 1", "liver", "lung")),
        ('[{"input": "a", "prompts": "p", "sentences": ["x"]}]', ("prompts-twice", "job 1")),
        ('[{"input": "a", "prompts": "p", "kind": "lesion"}]', ("kind-without-sentences", "job 1")),
        ('[{"input": "a", "output_spacing": [1, 2]}]', ("output-spacing-not-lengths", "job 1")),
        ('[{"input": "a", "output_spacing": [0]}]', ("output-spacing-not-positive", "job 1")),
        ('[{"input": "a", "output_spacing": "1"}]', ("job-invalid", "job 1", "output_spacing")),
        ('[{"input": "a", "crop": -1}]', ("crop-margin-negative", "job 1")),
        ('[{"input": "a", "mesh_reduction": 1}]', ("job-invalid", "job 1", "mesh_reduction")),
        ('[{"input": "a", "split": "folder"}]', ("job-invalid", "job 1", "split")),
        ('[{"input": "a", "format": "tiff"}]', ("format-unknown", "job 1", "tiff")),
        ('[{"input": "a", "crop": 1, "crop": 9}]', ("jobs-file-form", "'crop'", "twice")),
        ("[3]", ("job-invalid", "job 1")),
        ("{}", ("jobs-file-form",)),
        ("[]", ("jobs-file-empty",)),
        ("[" * 100_000, ("jobs-file-form",)),
        ("nonsense", ("jobs-file-form",)),
    ],
)
def test_json_errors_name_the_row(tmp_path: Path, content: str, error: tuple[str, ...]) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(content, encoding="utf-8")
    with raises(InputError, *error):
        read_jobs(path)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("input,seed\na.npz,1\n\nb.npz,x\n", ("job-invalid", "line 4", "seed")),
        ("input,seed\na.npz,1,7\n", ("job-invalid", "line 2")),
        ("input,colour\na.npz,red\n", ("column-unknown", "'colour'", "output_spacing")),
        ("input,colour\na.npz,\n", ("column-unknown", "'colour'")),
        ("input,seed, seed\na.npz,1,2\n", ("column-twice", "'seed'")),
        ("input,output_spacing\na.npz,1mm\n", ("job-invalid", "line 2", "output_spacing")),
        ("seed\n1\n", ("job-invalid", "line 2", "'input'")),
        ("input,sentences\na.npz,;\n", ("job-invalid", "line 2", "sentences")),
        ("", ("jobs-file-empty",)),
        ("input\n" + "x" * 200_000, ("jobs-file-form",)),
    ],
)
def test_csv_errors_name_the_line(tmp_path: Path, content: str, error: tuple[str, ...]) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(content, encoding="utf-8")
    with raises(InputError, *error):
        read_jobs(path)


def test_what_is_no_jobs_file(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text("", encoding="utf-8")
    with raises(InputError, "jobs-file-form"):
        read_jobs(tmp_path / "jobs.yaml")
    (tmp_path / "jobs.csv").write_bytes(b"input\n\xff\xfe")
    with raises(InputError, "jobs-file-form"):
        read_jobs(tmp_path / "jobs.csv")


@given(st.binary(max_size=300), st.sampled_from(["json", "csv"]))
def test_noise_is_refused_or_read(tmp_path_factory, noise: bytes, ending: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"noise.{ending}"
    path.write_bytes(noise)
    try:
        rows = read_jobs(path)
    except InputError:
        return
    assert all(row.input for row in rows)


def test_prompts_that_a_row_leaves_out_are_the_commands() -> None:
    """Its sentences take the place of sentences and file, and of nothing else."""
    command = PromptSource(
        sentences=("Spleen in CT",), lesions=("Liver tumors in CT",), groups=("kidneys",)
    )
    row = JobRow("a", sentences=("Liver in CT",))
    assert source_of(row, Path(), command) == replace(command, sentences=("Liver in CT",))
    row = JobRow("a", prompts="p.json", groups=("lungs",))
    expected = replace(command, file=Path("in/p.json"), sentences=(), groups=("lungs",))
    assert source_of(row, Path("in"), command) == expected
    assert source_of(JobRow("a", kind="lesion"), Path(), command) == replace(command, kind="lesion")


def test_a_row_may_say_all_that_decides_about_its_result() -> None:
    """But the time budget, which is the batch's: a new option must be thought of here."""
    deciding = {*RunOptions().deciding()["segment"]}
    assert deciding - {*JobRow.__struct_fields__} == {"time_budget"}
