"""The jobs file: typed rows from JSON and CSV, and errors that name the row."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.errors import InputError
from medals_rt.pipeline.batch.jobs_file import JobRow, read_jobs, segmenting
from medals_rt.pipeline.options import SegmentOptions
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


def test_options_of_the_algorithm_in_rows(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        "input,stages,block_sizes,threshold,mirrored,iterations\na,fine,4;8,0.4,true,2\n",
        encoding="utf-8",
    )
    (row,) = read_jobs(tmp_path / "jobs.csv")
    assert SegmentOptions(**segmenting(row)) == SegmentOptions(
        stages="fine", block_sizes=(4, 8), threshold=0.4, mirrored=True, iterations=2
    )
    (tmp_path / "jobs.json").write_text('[{"input": "a", "overlap": 2}]', encoding="utf-8")
    with raises(InputError, "overlap-out-of-range", "job 1"):
        read_jobs(tmp_path / "jobs.json")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('[{"input": "a.npz"}, {"output": "b"}]', ("job-invalid", "job 2", "`input`")),
        ('[{"input": "a.npz", "colour": 1}]', ("job-invalid", "job 1", "`colour`")),
        ('[{"input": "a.npz", "seed": "3"}]', ("job-invalid", "job 1", "seed")),
        ('[{"input": "a.npz", "seed": -1}]', ("job-invalid", "job 1", "seed")),
        ('[{"input": ""}]', ("job-invalid", "job 1")),
        ('[{"input": "a.npz", "sentences": []}]', ("job-invalid", "job 1")),
        ('[{"input": "a.npz", "kind": "organ"}]', ("job-invalid", "job 1", "organ")),
        ('[{"input": "a.npz", "window": "liver"}]', ("window-unknown", "job 1", "liver", "lung")),
        ('[{"input": "a", "prompts": "p", "sentences": ["x"]}]', ("prompts-twice", "job 1")),
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
        ("input,colour\na.npz,red\n", ("job-invalid", "line 2", "`colour`")),
        ("seed\n1\n", ("job-invalid", "line 2", "`input`")),
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
