"""The jobs file: typed rows from JSON and CSV, and errors that name the row."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.errors import InputError
from medals_rt.pipeline.batch.jobs_file import JobRow, read_jobs, segmenting
from medals_rt.pipeline.options import SegmentOptions


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"input": "a.npz", "sentences": ["Liver in CT", "Spleen, CT"], "seed": 3},
        {"input": "b, c.npz", "prompts": "p.json", "window": "soft tissue", "output": "b"},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(rows))
    (tmp_path / "jobs.csv").write_text(
        "\ufeffinput, sentences,seed,prompts,window,output\r\n"
        'a.npz,"Liver in CT; Spleen, CT;",3,,,\r\n'
        ",,,,,\r\n"
        '"b, c.npz",,, p.json,soft tissue,b\r\n',
        encoding="utf-8",
    )
    (tmp_path / "more.csv").write_text(
        "input,lesions,select,postprocess\na,Liver tumors in CT;,ECHO=2; SERIES=1,all\n"
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
        "input,stages,block_sizes,threshold,mirrored,iterations\na,fine,4;8,0.4,true,2\n"
    )
    (row,) = read_jobs(tmp_path / "jobs.csv")
    assert SegmentOptions(**segmenting(row)) == SegmentOptions(
        stages="fine", block_sizes=(4, 8), threshold=0.4, mirrored=True, iterations=2
    )
    (tmp_path / "jobs.json").write_text('[{"input": "a", "overlap": 2}]')
    with pytest.raises(InputError) as caught:
        read_jobs(tmp_path / "jobs.json")
    assert caught.value.code == "overlap-out-of-range"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"input": "a.npz"}, {"output": "b"}]', r"job 2: .*required field `input`"),
        ('[{"input": "a.npz", "colour": 1}]', r"job 1: .*unknown field `colour`; members are"),
        ('[{"input": "a.npz", "seed": "3"}]', r"job 1: Expected `int \| null`, got `str`.*seed"),
        ('[{"input": "a.npz", "seed": -1}]', r"job 1: .*>= 0.*seed"),
        ('[{"input": ""}]', r"job 1: .*length >= 1"),
        ('[{"input": "a.npz", "sentences": []}]', r"job 1: .*length >= 1"),
        ('[{"input": "a.npz", "kind": "organ"}]', r"job 1: Invalid enum value 'organ'"),
        ('[{"input": "a.npz", "window": "liver"}]', r"job 1: no window is called 'liver'.*lung"),
        ('[{"input": "a", "prompts": "p", "sentences": ["x"]}]', r"job 1: .*leave out one"),
        ("[3]", r"job 1: Expected `object`"),
        ("{}", "holds a dict; write a list"),
        ("[]", "holds no job"),
        ("[" * 100_000, "isn't JSON"),
        ("nonsense", "isn't JSON"),
    ],
)
def test_json_errors_name_the_row(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_jobs(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("input,seed\na.npz,1\n\nb.npz,x\n", r"line 4: Expected `int \| null`"),
        ("input,seed\na.npz,1,7\n", r"line 2: .*more cells than headings"),
        ("input,colour\na.npz,red\n", r"line 2: .*unknown field `colour`"),
        ("seed\n1\n", r"line 2: .*required field `input`"),
        ("input,sentences\na.npz,;\n", r"line 2: .*length >= 1"),
        ("", "holds no job"),
        ("input\n" + "x" * 200_000, "field larger than"),
    ],
)
def test_csv_errors_name_the_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_jobs(path)


def test_what_is_no_jobs_file(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text("")
    with pytest.raises(InputError, match="unknown format"):
        read_jobs(tmp_path / "jobs.yaml")
    (tmp_path / "jobs.csv").write_bytes(b"input\n\xff\xfe")
    with pytest.raises(InputError, match="isn't UTF-8"):
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
