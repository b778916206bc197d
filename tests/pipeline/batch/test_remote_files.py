"""Batches whose files lie behind URLs: a real S3 server on this machine, and its ways to fail."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import CaseError, InputError, MissingFileError
from medals_rt.pipeline.batch import Batch, plan_batch, records
from medals_rt.pipeline.batch import run as batch_run
from medals_rt.pipeline.batch.inputs import input_sizes
from medals_rt.pipeline.batch.remote_files import (
    LOCAL,
    RemoteFiles,
    content_sha256,
    local_places,
    url_of,
)
from medals_rt.pipeline.job_request import Job, ReadJob
from tests.dicom import write_series
from tests.errors import raises
from tests.pipeline.batch.helpers import KIDNEY, LIVER, batch, statuses, write_case


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server", reason="an S3 server on this machine")
    pytest.importorskip("s3fs", reason="the extra 's3'")
    served = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Make a bucket with three cases, and set the environment as users would."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    if files.exists("clinic"):
        files.rm("clinic", recursive=True)
    files.mkdir("clinic")
    for name, prompts in (("a", LIVER), ("deep/b c", KIDNEY), ("d", LIVER)):
        local = write_case(tmp_path / "made.npz", len(name), prompts)
        files.put_file(str(local), f"clinic/scans/{name}.npz")
    return files


def keys(bucket: Any, below: str) -> list[str]:
    return sorted(each.removeprefix(f"{below}/") for each in bucket.find(below))


def statuses_of(bucket: Any, below: str) -> dict[str, str]:
    lines = bucket.cat_file(f"{below}/summary.csv").decode().splitlines()[1:]
    return {line.split(",")[0]: line.split(",")[1] for line in lines}


@pytest.fixture
def requests(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Count what is asked of the server: kinds of requests, and keys below the results."""
    asked: Counter[tuple[str, str]] = Counter()
    call = type(bucket)._call_s3

    async def counted(self: Any, method: str, *given: Any, **more: Any) -> Any:
        key = str(more.get("Key") or more.get("Prefix") or "")
        asked[method, key.removeprefix("results/")] += 1
        return await call(self, method, *given, **more)

    monkeypatch.setattr(type(bucket), "_call_s3", counted)
    return asked


def test_the_record_of_a_case_is_asked_for_once(
    tiny_bundle: Bundle, bucket: Any, requests: Counter[tuple[str, str]], tmp_path: Path
) -> None:
    """Also where it is made again, and what an earlier batch has written is looked at."""
    words = ("s3://clinic/scans/a.npz", "s3://clinic/results", "--no-preview")
    for change in (None, None, 9):
        if change is not None:
            bucket.put_file(str(write_case(tmp_path / "new.npz", change)), "clinic/scans/a.npz")
        requests.clear()
        assert batch(tiny_bundle.folder, *words).exit_code == 0
        about = {each: n for each, n in requests.items() if each[1].startswith(".medals-rt/")}
        assert ("get_object", ".medals-rt/a.json") in about
        assert set(about.values()) == {1}, about


Rule = tuple[str, str, Exception]
"""A kind of request, part of a key, and what the store's library raises then."""


@pytest.fixture
def refusals(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> list[Rule]:
    """Refuse what is put into the list."""
    rules: list[Rule] = []
    call = type(bucket)._call_s3

    async def asked(self: Any, method: str, *given: Any, **more: Any) -> Any:
        key = str(more.get("Key") or more.get("Prefix") or "")
        for kind, part, error in rules:
            if method == kind and part in key:
                raise error
        return await call(self, method, *given, **more)

    monkeypatch.setattr(type(bucket), "_call_s3", asked)
    return rules


@pytest.fixture
def after_fetching(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Path]]:
    """Put the files that are put into the list, by key, each time after one of the inputs came."""
    changes: list[dict[str, Path]] = []
    call = type(bucket)._call_s3

    async def came(self: Any, method: str, *given: Any, **more: Any) -> Any:
        found = await call(self, method, *given, **more)
        if changes and method == "get_object" and more["Key"].startswith("scans/"):
            for key, path in changes.pop().items():
                await call(self, "put_object", Bucket="clinic", Key=key, Body=path.read_bytes())
        return found

    monkeypatch.setattr(type(bucket), "_call_s3", came)
    return changes


def series_files(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write a series of 12 slices, and name it by keys."""
    array = np.random.default_rng(seed).integers(-100, 200, (12, 14, 14)).astype(np.int16)
    write_series(folder, array, np.diag([2.0, 2.0, 3.0, 1.0]))
    return {f"scans/series/{file.name}.dcm": file for file in folder.iterdir()}


def put_series(bucket: Any, folder: Path) -> None:
    for key, file in series_files(folder).items():
        bucket.put_file(str(file), f"clinic/{key}")


def put_jobs(path: Path, *rows: Sequence[str], headings: str = "input,sentences,output") -> Path:
    path.write_text("\n".join([headings, *map(",".join, rows)]), encoding="utf-8")
    return path


def test_cases_of_one_input_have_copies_of_their_own(
    tiny_bundle: Bundle, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one ends while the next one is brought, but not read."""
    read_job = batch_run.read_job

    def read_late(job: Job) -> ReadJob:
        time.sleep(0.3)
        return read_job(job)

    monkeypatch.setattr(batch_run, "read_job", read_late)
    put_series(bucket, tmp_path / "series")
    inputs = ("a.npz", "series", "a.npz", "series", "a.npz", "series", "a.npz", "series")
    rows = [(name, LIVER["1"], f"case{number}.nii.gz") for number, name in enumerate(inputs)]
    jobs = put_jobs(tmp_path / "jobs.csv", *rows)
    words = ("s3://clinic/scans", "s3://clinic/results", "--jobs", jobs, "--no-preview")
    result = batch(tiny_bundle.folder, *words, "--format", "nii.gz")
    assert result.exit_code == 0, result.output
    assert statuses_of(bucket, "clinic/results") == {
        f"case{number}": "done" for number in range(len(inputs))
    }
    made = [bucket.cat_file(f"clinic/results/case{number}.nii.gz") for number in range(len(inputs))]
    assert len(set(made)) == 2


def test_an_input_that_changes_while_it_is_brought(
    tiny_bundle: Bundle,
    bucket: Any,
    after_fetching: list[dict[str, Path]],
    tmp_path: Path,
) -> None:
    """A file, and a series of which some slices are of either scan."""
    bucket.rm("clinic/scans", recursive=True)
    put_series(bucket, tmp_path / "series")
    write_case(tmp_path / "a.npz", 1)
    bucket.put_file(str(tmp_path / "a.npz"), "clinic/scans/a.npz")
    other = write_case(tmp_path / "b.npz", 2)
    words = ("s3://clinic/results", "--no-preview", "--prompt", LIVER["1"])
    for name, change in {
        "a.npz": {"scans/a.npz": other},
        "series": series_files(tmp_path / "series2", 2),
    }.items():
        after_fetching.append(change)
        command = (tiny_bundle.folder, f"s3://clinic/scans/{name}", *words)
        result = batch(*command)
        assert result.exit_code == 1, result.output
        record = json.loads(bucket.cat_file(f"clinic/results/.medals-rt/{Path(name).stem}.json"))
        assert "changed while it was read" in record["entry"]["error"]
        assert batch(*command).exit_code == 0


def test_cases_of_two_files(tiny_bundle: Bundle, bucket: Any, tmp_path: Path) -> None:
    """Both are brought, and a change of either is seen."""
    sitk = pytest.importorskip("SimpleITK", reason="writes headers and data files")
    bucket.rm("clinic/scans", recursive=True)
    folder = tmp_path / "pairs"
    folder.mkdir()
    for seed in (1, 2):
        array = np.random.default_rng(seed).integers(-100, 200, (6, 14, 14)).astype(np.int16)
        scan = sitk.GetImageFromArray(array)
        scan.SetSpacing((2.0, 2.0, 3.0))
        for name in ("a.mhd", "b.nhdr", "c.hdr"):
            sitk.WriteImage(scan, str(folder / name))
        for file in folder.iterdir():
            if seed == 1 or file.suffix in {".raw", ".img"}:
                bucket.put_file(str(file), f"clinic/scans/{file.name}")
        words = ("s3://clinic/scans", "s3://clinic/results", "--prompt", LIVER["1"])
        command = (tiny_bundle.folder, *words, "--no-preview", "--format", "nii.gz")
        for status in ("done", "kept"):
            result = batch(*command)
            assert result.exit_code == 0, result.output
            found = statuses_of(bucket, "clinic/results")
            assert found == dict.fromkeys("abc", status)


def test_results_among_inputs_are_no_scans(tiny_bundle: Bundle, bucket: Any) -> None:
    prompt = ("--no-preview", "--prompt", LIVER["1"], "--format", "nii.gz")
    below = ("s3://clinic/scans", "s3://clinic/scans/labels", "--reports", "s3://clinic/reports")
    beside = ("s3://clinic/scans", "s3://clinic/scans")
    names = {"a", "d", "deep/b c"}
    for words, reports in ((below, "reports"), (beside, "scans")):
        for status in ("done", "kept", "kept"):
            result = batch(tiny_bundle.folder, *words, *prompt)
            assert result.exit_code == 0, result.output
            assert statuses_of(bucket, f"clinic/{reports}") == dict.fromkeys(names, status)
    result = batch(tiny_bundle.folder, *beside, "--no-preview")
    assert result.exit_code == 2
    assert "s3://clinic/scans/a.npz" in result.stderr
    assert tempfile.gettempdir() not in result.stderr


def test_markers_of_folders(tiny_bundle: Bundle, bucket: Any, tmp_path: Path) -> None:
    put_series(bucket, tmp_path / "series")
    for name in ("", "deep/", "series/", "empty/"):
        bucket.call_s3("put_object", Bucket="clinic", Key=f"scans/{name}", Body=b"")
    words = ("s3://clinic/scans", tmp_path / "out", "--no-preview", "--prompt", LIVER["1"])
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 0, result.output
    assert set(statuses(tmp_path / "out")) == {"a", "d", "deep/b c", "series"}


def test_names_that_no_files_can_have(bucket: Any, tmp_path: Path) -> None:
    for name in ("a.npz/x.npz", "x?versionId=1.npz"):
        bucket.call_s3("put_object", Bucket="clinic", Key=f"scans/{name}", Body=b"")
        with (
            raises(InputError, "url-name"),
            local_places([Path("s3://clinic/scans")], tmp_path, None),
        ):
            pass
        bucket.call_s3("delete_object", Bucket="clinic", Key=f"scans/{name}")


def test_a_key_with_colons(tiny_bundle: Bundle, bucket: Any) -> None:
    bucket.copy("clinic/scans/a.npz", "clinic/odd/a::b.npz")
    result = batch(tiny_bundle.folder, "s3://clinic/odd", "s3://clinic/results", "--no-preview")
    assert result.exit_code == 0, result.output
    assert statuses_of(bucket, "clinic/results") == {"a::b": "done"}


def test_what_changes_without_the_content_is_no_change(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call = type(bucket)._call_s3
    more: dict[str, str] = {}

    async def said(self: Any, method: str, *given: Any, **words: Any) -> Any:
        found = await call(self, method, *given, **words)
        return {**found, **more} if method == "head_object" else found

    monkeypatch.setattr(type(bucket), "_call_s3", said)
    remote = RemoteFiles(tmp_path)
    place = remote.place(Path("s3://clinic/scans/a.npz"))
    before = remote.identity(place)
    more.update(StorageClass="GLACIER_IR", VersionId="7", ContentType="text/plain")
    assert remote.identity(place) == before
    more.update(ETag='"other"')
    assert remote.identity(place) != before


def test_without_the_right_to_remove(
    tiny_bundle: Bundle, bucket: Any, refusals: list[Rule], tmp_path: Path
) -> None:
    refusals.append(("delete_object", "", PermissionError("Access Denied")))
    words = ("s3://clinic/scans", "s3://clinic/results", "--no-preview")
    for status in ("done", "kept"):
        result = batch(tiny_bundle.folder, *words)
        assert result.exit_code == 0, result.output
        assert set(statuses_of(bucket, "clinic/results").values()) == {status}
    before = bucket.cat_file("clinic/scans/a.npz")
    bucket.pipe_file("clinic/scans/a.npz", b"broken")
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 1
    assert statuses_of(bucket, "clinic/results") == {"a": "failed", "d": "kept", "deep/b c": "kept"}
    record = json.loads(bucket.cat_file("clinic/results/.medals-rt/a.json"))
    assert [note["code"] for note in record["entry"]["notes"]] == ["result-stays", "result-stays"]
    bucket.pipe_file("clinic/scans/a.npz", before + b" ")
    write_case(tmp_path / "new.npz", 5)
    bucket.put_file(str(tmp_path / "new.npz"), "clinic/scans/a.npz")
    assert batch(tiny_bundle.folder, *words).exit_code == 0


@pytest.mark.parametrize("method", ["get_object", "head_object", "list_objects_v2"])
def test_a_refusal_is_one_cases_failure(
    tiny_bundle: Bundle, bucket: Any, refusals: list[Rule], method: str
) -> None:
    """Of its record, or of one of its results; these stay, and count again afterwards."""
    words = ("s3://clinic/scans", "s3://clinic/results", "--no-preview")
    if method != "list_objects_v2":
        assert batch(tiny_bundle.folder, *words).exit_code == 0
    part = ".medals-rt/a.json" if method == "get_object" else "results/a.npz"
    refusals.append((method, part, OSError(16, "Please reduce your request rate.")))
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 1, result.output
    refused = statuses_of(bucket, "clinic/results")
    assert {name for name, status in refused.items() if status == "failed"} == {"a"}
    refusals.clear()
    assert batch(tiny_bundle.folder, *words).exit_code == 0
    status = "done" if method == "list_objects_v2" else "kept"
    assert statuses_of(bucket, "clinic/results") == {"a": status, "d": "kept", "deep/b c": "kept"}


def test_prompts_of_a_row_lie_behind_the_url(
    tiny_bundle: Bundle, bucket: Any, tmp_path: Path
) -> None:
    bucket.pipe_file("clinic/scans/p.json", json.dumps(KIDNEY).encode())
    rows = (("a.npz", "p.json"), ("d.npz", "p.json"))
    jobs = put_jobs(tmp_path / "jobs.csv", *rows, headings="input,prompts")
    words = ("s3://clinic/scans", "s3://clinic/results", "--jobs", jobs, "--no-preview")
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 0, result.output
    report = json.loads(bucket.cat_file("clinic/results/reports/a.json"))
    assert "kidney" in json.dumps(report)
    bucket.pipe_file("clinic/scans/p.json", json.dumps(LIVER).encode())
    assert batch(tiny_bundle.folder, *words).exit_code == 0
    assert set(statuses_of(bucket, "clinic/results").values()) == {"done"}


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("NoCredentialsError", "AWS_ACCESS_KEY_ID"),
        ("EndpointConnectionError", "AWS_ENDPOINT_URL"),
    ],
)
def test_errors_of_the_stores_own_library(
    tiny_bundle: Bundle, refusals: list[Rule], error: str, remedy: str
) -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    raised = getattr(botocore, error)(endpoint_url="http://none")
    refusals += [(method, "", raised) for method in ("list_objects_v2", "head_object")]
    result = batch(tiny_bundle.folder, "s3://clinic/scans", "s3://clinic/results", "--no-preview")
    assert result.exit_code == 2
    assert remedy in result.stderr


def test_results_that_cannot_be_written_are_refused_first(
    tiny_bundle: Bundle, bucket: Any, refusals: list[Rule], requests: Counter[tuple[str, str]]
) -> None:
    refusals.append(("put_object", "results/", PermissionError("Access Denied")))
    for results in ("s3://clinic/results", "s3://nowhere/results"):
        requests.clear()
        result = batch(tiny_bundle.folder, "s3://clinic/scans", results, "--no-preview")
        assert result.exit_code == 1
        assert f"can't write {results}/.medals-rt/.claims" in result.stderr
        assert requests.keys() <= {
            ("list_objects_v2", "scans/"),
            ("put_object", ".medals-rt/.claims"),
        }
    assert keys(bucket, "clinic/results") == []


@pytest.mark.usefixtures("bucket")
def test_what_is_not_taken_from_urls(tiny_bundle: Bundle, bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("clinic/scans/list.txt", b"a.npz")
    (tmp_path / "list.txt").write_text("s3://clinic/scans/a.npz", encoding="utf-8")
    for inputs, *more in (
        ("s3://clinic/scans/list.txt",),
        (tmp_path / "list.txt",),
        ("s3://clinic/scans", "--jobs", "s3://clinic/jobs.csv"),
        ("s3://clinic/scans", "--prompts", "s3://clinic/prompts.json"),
    ):
        result = batch(tiny_bundle.folder, inputs, tmp_path / "out", "--no-preview", *more)
        assert result.exit_code == 2
        assert "URLs" in result.stderr
    result = batch(tiny_bundle.folder, "s3://clinic/scans/*.npz", tmp_path / "out", "--no-preview")
    assert "patterns aren't taken" in result.stderr


def test_how_much_is_asked_of_a_store(
    tiny_bundle: Bundle, bucket: Any, requests: Counter[tuple[str, str]], tmp_path: Path
) -> None:
    """Of one case that is fresh, then kept; benchmarks/NOTES.md has the figures."""
    put_series(bucket, tmp_path / "series")
    slices = 12
    words = ("--no-preview", "--prompt", LIVER["1"], "--format", "nii.gz")
    for name, fresh, kept in (("a.npz", 17, 8), ("series", 17 + slices, 8)):
        for expected in (fresh, kept):
            requests.clear()
            command = (f"s3://clinic/scans/{name}", "s3://clinic/results", *words)
            assert batch(tiny_bundle.folder, *command).exit_code == 0
            assert requests.total() <= expected, sorted(requests.items())


def test_a_key_that_leads_out_of_its_folder_is_not_fetched(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra 's3'")
    files = fsspec.filesystem("memory")
    files.pipe_file("/clinic/series/a.dcm", b"slice")
    files.store["/clinic/series/../../evil.txt"] = files.store["/clinic/series/a.dcm"]
    remote = RemoteFiles(tmp_path / "here")
    series = remote.place(Path("memory://clinic/series"))
    with raises(CaseError, "url-leaves-folder"):
        remote.fetch(series)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    del files.store["/clinic/series/../../evil.txt"]
    assert remote.fetch(series)
    assert (series / "a.dcm").read_bytes() == b"slice"
    assert remote.exists(series / "a.dcm")
    assert not remote.exists(series / "b.dcm")
    assert remote.read(series / "b.dcm") is None


def test_from_a_bucket_to_a_bucket_and_on(tiny_bundle: Bundle, bucket: Any, tmp_path: Path) -> None:
    words = ("s3://clinic/scans", "s3://clinic/results", "--no-preview")
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 0, result.output
    names = ("a", "d", "deep/b c")
    assert keys(bucket, "clinic/results") == sorted(
        [f".medals-rt/{name}.json" for name in names]
        + [f"{name}.npz" for name in names]
        + [f"reports/{name}.json" for name in names]
        + [".medals-rt/.claims", "summary.csv"]
    )
    assert "wrote s3://clinic/results/summary.csv" in result.stdout
    assert "s3://clinic/scans/a.npz" in bucket.cat_file("clinic/results/summary.csv").decode()
    local = tmp_path / "scans"
    bucket.get("clinic/scans", str(local), recursive=True)
    assert batch(tiny_bundle.folder, local, tmp_path / "out", "--no-preview").exit_code == 0
    made = bucket.cat_file("clinic/results/deep/b c.npz")
    assert made == (tmp_path / "out" / "deep" / "b c.npz").read_bytes()

    assert batch(tiny_bundle.folder, *words).exit_code == 0
    assert set(statuses_of(bucket, "clinic/results").values()) == {"kept"}
    bucket.put_file(str(write_case(tmp_path / "new.npz", 9)), "clinic/scans/a.npz")
    bucket.rm_file("clinic/results/d.npz")
    assert batch(tiny_bundle.folder, *words).exit_code == 0
    assert statuses_of(bucket, "clinic/results") == {"a": "done", "d": "done", "deep/b c": "kept"}
    bucket.pipe_file("clinic/scans/a.npz", b"broken")
    assert batch(tiny_bundle.folder, *words).exit_code == 1
    assert "a.npz" not in keys(bucket, "clinic/results")


def test_what_a_killed_process_put_there_is_written_over_and_nothing_else(
    tiny_bundle: Bundle, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (tiny_bundle.folder, "s3://clinic/scans/a.npz", "s3://clinic/results", "--no-preview")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for drawn in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(records, "_write", killed)
            assert batch(*words, "--seed", str(int(drawn))).exit_code == 130
        assert ".medals-rt/a.json.writing" in keys(bucket, "clinic/results")
        if drawn:
            bucket.pipe_file("clinic/results/a.npz", b"drawn")
        assert batch(*words).exit_code == drawn
    assert bucket.cat_file("clinic/results/a.npz") == b"drawn"


def test_scans_of_the_same_names_behind_urls_are_told_apart_by_their_sizes(
    bucket: Any, tmp_path: Path
) -> None:
    """As those on a disk; the listing has the sizes."""
    local = write_case(tmp_path / "a.npz")
    series = [f"series/{number}.dcm" for number in range(2)]
    for site, more in (("anna", b""), ("berta", b"more")):
        bucket.pipe_file(f"clinic/{site}/a.npz", local.read_bytes() + more)
        for name in series:
            bucket.pipe_file(f"clinic/{site}/{name}", bytes(1000) + more)
    sizes = []
    for site in ("anna", "berta"):
        url = Path(f"s3://clinic/{site}")
        with local_places([url], tmp_path / "out", None) as (remote, inputs, out, _):
            found = plan_batch(Batch(tuple(inputs), out), remote)
            names = [case.name for case in found.cases]
            sizes.append(dict(zip(names, input_sizes(found), strict=True)))
    size = local.stat().st_size
    assert sizes == [
        {"a": [[size]], "series": [[2, 2000]]},
        {"a": [[size + 4]], "series": [[2, 2008]]},
    ]


def test_two_processes_on_a_bucket(tiny_bundle: Bundle, bucket: Any) -> None:
    words = ("s3://clinic/scans", "s3://clinic/results", "--processes", 2)
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 0, result.output
    assert set(statuses_of(bucket, "clinic/results").values()) == {"done"}
    page = bucket.cat_file("clinic/results/index.html").decode()
    assert '"previews/a.png"' in page
    picture = bucket.cat_file("clinic/results/previews/a.png")
    assert picture.startswith(b"\x89PNG")


@pytest.mark.usefixtures("bucket")
def test_results_of_a_bucket_on_a_disk(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = batch(tiny_bundle.folder, "s3://clinic/scans/a.npz", out, "--no-preview")
    assert result.exit_code == 0, result.output
    with np.load(out / "a.npz") as found:
        assert "segs" in found
    record = json.loads((out / ".medals-rt" / "a.json").read_text(encoding="utf-8"))
    assert record["entry"]["input"] == "s3://clinic/scans/a.npz"


@pytest.mark.usefixtures("bucket")
def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for url in ("s3://clinic/nothing", "s3://nowhere/scans"):
        with pytest.raises(MissingFileError), local_places([Path(url)], tmp_path / "out", None):
            pass


def test_an_unknown_scheme(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(InputError) as caught, local_places([Path("nope://a/b")], tmp_path, None):
        pass
    assert caught.value.code == "url-scheme"


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ("s3://bucket/scans/", "s3://bucket/scans"),
        ("s3:/bucket/scans", "s3://bucket/scans"),
        ("C:/scans", None),
        ("scans/s3:/x", None),
        ("/scans", None),
    ],
)
def test_urls_among_paths(words: str, url: str | None) -> None:
    assert url_of(Path(words)) == url


def test_places_of_urls(tmp_path: Path) -> None:
    remote = RemoteFiles(tmp_path / "here")
    place = remote.place(Path("s3://b/scans/a.npz"))
    assert place.is_relative_to(tmp_path / "here")
    assert remote.url(place) == "s3://b/scans/a.npz"
    assert remote.url(remote.place(Path("s3://b"))) == "s3://b"
    assert remote.url(tmp_path / "other") is None
    assert remote.place(tmp_path / "other") == tmp_path / "other"
    assert remote.told(f"can't read {place}: no") == "can't read s3://b/scans/a.npz: no"
    there = RemoteFiles(tmp_path / "there")
    assert there.url(remote.moved(place, tmp_path / "there")) == "s3://b/scans/a.npz"
    for url in ("s3://b/../c", "s3://b/a.npz?versionId=1"):
        with raises(InputError, "url-name"):
            remote.place(Path(url))


def test_files_of_this_machine(tmp_path: Path) -> None:
    path = write_case(tmp_path / "a.npz")
    assert LOCAL.identity(path) == content_sha256(path)
    assert LOCAL.identity(tmp_path / "none") is None
    assert not LOCAL.fetch(path)
    LOCAL.put(path)
    LOCAL.put_empty(path)
    assert LOCAL.identity(path) == content_sha256(path)
    assert LOCAL.shown(path) == str(path)
    LOCAL.remove(path)
    assert not LOCAL.exists(path)
