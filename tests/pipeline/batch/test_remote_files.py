"""Batches whose files lie behind URLs: a real S3 server on this machine, and its ways to fail."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import CaseError, InputError, MissingFileError
from medals_rt.pipeline.batch import records
from medals_rt.pipeline.batch.remote_files import (
    LOCAL,
    RemoteFiles,
    content_sha256,
    local_places,
    url_of,
)
from tests.errors import raises
from tests.pipeline.batch.helpers import KIDNEY, LIVER, batch, write_case


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
        assert ("head_object", ".medals-rt/a.json") in about
        assert set(about.values()) == {1}, about


def test_a_key_that_leads_out_of_its_folder_is_not_fetched(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra 's3'")
    files = fsspec.filesystem("memory")
    files.pipe_file("/clinic/series/a.dcm", b"slice")
    files.store["/clinic/series/../../evil.txt"] = files.store["/clinic/series/a.dcm"]
    remote = RemoteFiles(((tmp_path / "in" / "here", "memory://clinic"),))
    with raises(CaseError, "url-leaves-folder"):
        remote.fetch(tmp_path / "in" / "here" / "series")
    assert list(tmp_path.iterdir()) == []
    del files.store["/clinic/series/../../evil.txt"]
    remote.fetch(tmp_path / "in" / "here" / "series")
    assert (tmp_path / "in" / "here" / "series" / "a.dcm").read_bytes() == b"slice"


def test_from_a_bucket_to_a_bucket_and_on(tiny_bundle: Bundle, bucket: Any, tmp_path: Path) -> None:
    words = ("s3://clinic/scans", "s3://clinic/results", "--no-preview")
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 0, result.output
    names = ("a", "d", "deep/b c")
    assert keys(bucket, "clinic/results") == sorted(
        [f".medals-rt/{name}.json" for name in names]
        + [f"{name}.npz" for name in names]
        + [f"reports/{name}.json" for name in names]
        + ["summary.csv"]
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
    remote = RemoteFiles(((tmp_path / "in0", "s3://b"),))
    assert remote.url(tmp_path / "in0" / "scans" / "a.npz") == "s3://b/scans/a.npz"
    assert remote.url(tmp_path / "in0") == "s3://b"
    assert remote.url(tmp_path / "other") is None


def test_files_of_this_machine(tmp_path: Path) -> None:
    path = write_case(tmp_path / "a.npz")
    assert LOCAL.identity(path) == content_sha256(path)
    assert LOCAL.identity(tmp_path / "none") is None
    LOCAL.fetch(path)
    LOCAL.put(path)
    LOCAL.drop(path)
    assert path.is_file()
    assert LOCAL.shown(path) == str(path)
    LOCAL.remove(path)
    assert not LOCAL.exists(path)
