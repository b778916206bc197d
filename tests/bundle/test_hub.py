"""Downloads from a hub of our own on the loopback, over real HTTP."""

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="the extra 'hub'")

from medals_rt.bundle import hub as hub_module
from medals_rt.bundle import hub_address, manifest
from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.bundle.hub import RECORD_FILE, download, pin
from medals_rt.bundle.hub_address import HubAddress, KnownWeights, known_as, known_weights
from medals_rt.cli._output import out
from medals_rt.common.errors import (
    BundleError,
    DownloadError,
    InputError,
    MedalsError,
    MissingDependencyError,
    MissingFileError,
    OutputError,
)
from tests.cli.helpers import assert_one_line, call, error_of, write_case
from tests.fakes.hub import COMMIT, REPOSITORY, FakeHub, serving

WEIGHTS = np.random.default_rng(0).bytes(5_000_000)
FILES = {
    "coarse.pth": WEIGHTS,
    "text/vocab.txt": b"liver\nspleen\n",
    "text/config.json": b"{}",
    "text/empty.txt": b"",
    "README.md": b"# Weights",
    "LICENSE": b"Do as you like.",
    "text/pytorch_model.bin": b"a pickle of no use",
    ".gitattributes": b"*.pth filter=lfs",
    "model.onnx": b"no bundle's",
}
NEEDED = {
    "coarse.pth",
    "text/vocab.txt",
    "text/config.json",
    "text/empty.txt",
    "README.md",
    "LICENSE",
}
CUT_AT = 2_000_000


@pytest.fixture(autouse=True)
def _no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves the machine, and every name that would be looked up."""
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] == "127.0.0.1", address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub(dict(FILES))) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def address(hub: FakeHub) -> HubAddress:
    return HubAddress.parse(hub.address)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def refused(kind: type[MedalsError], code: str, work: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        work()
    assert caught.value.code == code, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_needed_comes_with_our_own_hashes(address: HubAddress, tmp_path: Path) -> None:
    done = download(address, tmp_path / "to")
    assert content(tmp_path / "to") == {name: FILES[name] for name in NEEDED}
    assert done.left_out == (".gitattributes", "model.onnx", "text/pytorch_model.bin")
    assert done.fetched_bytes == sum(len(FILES[name]) for name in NEEDED)
    record = json.loads((tmp_path / "to" / RECORD_FILE).read_text(encoding="utf-8"))
    assert record["source"] == str(address)
    assert {each["file"]: each["sha256"] for each in record["files"]} == {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in NEEDED
    }
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_the_second_call_makes_no_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(FakeHub(dict(FILES))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        address = HubAddress.parse(hub.address)
        first = download(address, tmp_path)
        asked = len(hub.requests)
        assert download(address, tmp_path).files == first.files
        assert len(hub.requests) == asked
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # nor is the library imported
    again = download(address, tmp_path)
    assert (again.files, again.fetched_bytes) == (first.files, 0)


def test_a_read_only_copy_is_enough(
    address: HubAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(address, tmp_path / "to")
    monkeypatch.setattr(hub_module, "_complete", None)  # all that writes
    assert download(address, tmp_path / "to").fetched_bytes == 0


def test_a_broken_connection_is_opened_again(
    hub: FakeHub, address: HubAddress, tmp_path: Path
) -> None:
    hub.cut_at, hub.cuts = CUT_AT, 1
    seen: list[tuple[str, int, int]] = []
    download(address, tmp_path, progress=lambda *step: seen.append(step))
    assert content(tmp_path)["coarse.pth"] == WEIGHTS
    assert hub.ranges == [f"bytes={CUT_AT}-"]
    assert ("coarse.pth, MB", 5, 5) in seen


def test_an_interrupted_download_goes_on_where_it_stopped(
    hub: FakeHub, address: HubAddress, tmp_path: Path
) -> None:
    hub.cut_at = CUT_AT
    refused(DownloadError, "download-interrupted", lambda: download(address, tmp_path))
    assert "coarse.pth" not in content(tmp_path)
    hub.cut_at = None
    hub.requests.clear()
    hub.ranges.clear()
    done = download(address, tmp_path)
    assert content(tmp_path) == {name: FILES[name] for name in NEEDED}
    assert set(hub.ranges) == {f"bytes={CUT_AT}-"}
    assert not any(path.startswith("/api") for path in hub.requests)
    assert done.fetched_bytes < len(WEIGHTS) - CUT_AT + 1000


def test_a_hub_that_cannot_continue_sends_all_again(
    hub: FakeHub, address: HubAddress, tmp_path: Path
) -> None:
    hub.cut_at, hub.cuts, hub.ignores_ranges = CUT_AT, 1, True
    download(address, tmp_path)
    assert content(tmp_path)["coarse.pth"] == WEIGHTS


def test_ctrl_c_keeps_what_is_here(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = hub_module.fetch

    def stops_at_weights(address: Any, file: Any, *rest: Any) -> int:
        if file.file == "coarse.pth":
            raise KeyboardInterrupt
        return fetch(address, file, *rest)

    monkeypatch.setattr(hub_module, "fetch", stops_at_weights)
    result = call("download", hub.address, "--to", tmp_path)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "the same command continues" in result.stderr
    monkeypatch.setattr(hub_module, "fetch", fetch)
    assert call("download", hub.address, "--to", tmp_path).exit_code == 0


@pytest.mark.parametrize("name", ["coarse.pth", "text/vocab.txt"])
def test_a_file_that_was_changed_is_found(address: HubAddress, tmp_path: Path, name: str) -> None:
    download(address, tmp_path)
    data = bytearray(FILES[name])
    data[3] ^= 1
    (tmp_path / name).write_bytes(data)
    refused(InputError, "file-tampered", lambda: download(address, tmp_path))
    (tmp_path / name).unlink()
    assert download(address, tmp_path).fetched_bytes == len(FILES[name])
    assert (tmp_path / name).read_bytes() == FILES[name]


@pytest.mark.parametrize("name", ["coarse.pth", "text/vocab.txt"])
def test_content_that_the_hub_did_not_announce_is_refused(
    hub: FakeHub, address: HubAddress, tmp_path: Path, name: str
) -> None:
    hub.sent[name] = FILES[name][:-1] + b"?"
    refused(DownloadError, "download-damaged", lambda: download(address, tmp_path))
    hub.sent[name] = FILES[name] + b"more"
    refused(DownloadError, "download-damaged", lambda: download(address, tmp_path))
    assert name not in content(tmp_path)
    hub.sent.clear()
    download(address, tmp_path)


def test_files_that_were_there_are_taken_only_if_they_are_the_same(
    address: HubAddress, tmp_path: Path
) -> None:
    (tmp_path / "coarse.pth").write_bytes(WEIGHTS)
    (tmp_path / "README.md").write_bytes(b"my notes")
    refused(InputError, "file-in-the-way", lambda: download(address, tmp_path))
    assert (tmp_path / "README.md").read_bytes() == b"my notes"
    (tmp_path / "README.md").unlink()
    assert download(address, tmp_path).fetched_bytes < 1000


def test_a_folder_holds_one_repository_at_one_commit(address: HubAddress, tmp_path: Path) -> None:
    download(address, tmp_path)
    other = HubAddress(REPOSITORY, revision="f" * 40)
    refused(InputError, "folder-taken", lambda: download(other, tmp_path))
    (tmp_path / RECORD_FILE).write_text("{}", encoding="utf-8")
    refused(InputError, "record-damaged", lambda: download(address, tmp_path))


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_a_revision_that_can_move_is_refused(
    hub: FakeHub, tmp_path: Path, revision: str | None
) -> None:
    address = HubAddress(REPOSITORY, revision=revision)
    refused(InputError, "revision-not-pinned", lambda: download(address, tmp_path))
    assert hub.requests == []


def test_a_branch_is_pinned_when_asked(address: HubAddress, tmp_path: Path) -> None:
    assert pin(HubAddress(REPOSITORY)) == pin(HubAddress(REPOSITORY, revision="main")) == address
    assert pin(address) is address
    result = call("download", f"hf:{REPOSITORY}", "--unpinned", "--to", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"is now {address}" in result.stderr
    assert "coarse.pth" in content(tmp_path)


@pytest.mark.parametrize(
    ("address", "kind", "code"),
    [
        (f"hf:{REPOSITORY}@{'f' * 40}", InputError, "revision-missing"),
        (f"hf:someone/else@{COMMIT}", InputError, "repository-missing"),
        (f"hf:someone/a--b@{COMMIT}", InputError, "address-invalid"),
        (f"hf:{REPOSITORY}/no/such@{COMMIT}", MissingFileError, "file-missing"),
        (f"hf:{REPOSITORY}/text/pytorch_model.bin@{COMMIT}", MissingFileError, "file-missing"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_lacks(
    tmp_path: Path, address: str, kind: type[MedalsError], code: str
) -> None:
    result = call("download", address, "--to", tmp_path)
    assert_one_line(result, 2)
    error = error_of(result)
    assert isinstance(error, kind)
    assert error.code == code
    assert content(tmp_path) == {}


def test_a_file_that_went_missing(hub: FakeHub, address: HubAddress, tmp_path: Path) -> None:
    hub.cut_at = CUT_AT
    refused(DownloadError, "download-interrupted", lambda: download(address, tmp_path))
    del hub.files["coarse.pth"]
    refused(MissingFileError, "file-missing", lambda: download(address, tmp_path))


@pytest.mark.parametrize(
    ("status", "error_code", "kind", "code"),
    [
        (403, "GatedRepo", InputError, "repository-gated"),
        (500, "", DownloadError, "hub-refused"),
        (200, "", DownloadError, "hub-answer-invalid"),
    ],
)
def test_what_the_hub_does_not_give(
    hub: FakeHub,
    address: HubAddress,
    tmp_path: Path,
    status: int,
    error_code: str,
    kind: type[MedalsError],
    code: str,
) -> None:
    hub.status, hub.error_code = status, error_code
    refused(kind, code, lambda: download(address, tmp_path))


@pytest.mark.usefixtures("hub")
def test_another_commit_than_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.hub._Handler._known", lambda *_: True)
    other = HubAddress(REPOSITORY, revision="f" * 40)
    refused(DownloadError, "hub-answer-invalid", lambda: download(other, tmp_path))


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    result = call("download", f"hf:{REPOSITORY}@{COMMIT}", "--to", tmp_path)
    assert_one_line(result, 1, f"127.0.0.1:{port}")
    error = error_of(result)
    assert isinstance(error, DownloadError)
    assert error.code == "network-missing"


def test_offline_mode_forbids_requests(
    hub: FakeHub, address: HubAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(DownloadError, "network-missing", lambda: download(address, tmp_path))
    assert hub.requests == []


def test_without_the_extra(
    address: HubAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(MissingDependencyError, "dependency-missing", lambda: download(address, tmp_path))


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_space_is_checked_before_the_first_byte(
    hub: FakeHub, address: HubAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(len(FILES[name]) for name in NEEDED)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 1, needed - 1))
    refused(OutputError, "disk-full", lambda: download(address, tmp_path))
    assert len(hub.requests) == 1
    assert content(tmp_path) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 0, needed))
    hub.cut_at = CUT_AT
    refused(DownloadError, "download-interrupted", lambda: download(address, tmp_path))
    hub.cut_at = None
    here = sum(map(len, content(tmp_path).values())) + CUT_AT
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, here, needed - here))
    download(address, tmp_path)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EIO, "folder-unusable")]
)
def test_a_disk_that_fails_during_the_download(
    address: HubAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hub_module, "fetch", fail)
    refused(OutputError, code, lambda: download(address, tmp_path))
    (tmp_path / "file").touch()
    refused(OutputError, "folder-unusable", lambda: download(address, tmp_path / "file"))


@pytest.mark.parametrize("name", ["../out.json", "a/../../out.json", "/tmp/out.json", "C:/x.json"])  # noqa: S108
def test_a_name_may_not_leave_the_folder(
    hub: FakeHub, address: HubAddress, tmp_path: Path, name: str
) -> None:
    hub.files[name] = b"{}"
    refused(BundleError, "path-leaves-bundle", lambda: download(address, tmp_path / "to"))
    assert content(tmp_path) == {}
    hub.files.pop(name)
    folder = tmp_path / "to"
    download(address, folder)
    record = (folder / RECORD_FILE).read_text(encoding="utf-8")
    (folder / RECORD_FILE).write_text(record.replace("README.md", name), encoding="utf-8")
    refused(BundleError, "path-leaves-bundle", lambda: download(address, folder))


@pytest.mark.usefixtures("hub")
def test_a_part_of_a_repository(tmp_path: Path) -> None:
    part = HubAddress.parse(f"hf:{REPOSITORY}/text@{COMMIT}")
    done = download(part, tmp_path)
    legal = {"README.md", "LICENSE"}
    assert (
        set(content(tmp_path)) == {"text/vocab.txt", "text/config.json", "text/empty.txt"} | legal
    )
    assert done.content == tmp_path / "text"
    one = HubAddress.parse(f"hf:{REPOSITORY}/coarse.pth@{COMMIT}")
    assert download(one, tmp_path).fetched_bytes == len(WEIGHTS)
    assert set(content(tmp_path)) == NEEDED


@pytest.mark.parametrize(
    "text", ["", "hf:", "hf:one", "hf:a/b@", "spc819/Medal-S", "hf:a/b@x y", "hf:../b@c", "hf:a//b"]
)
def test_what_is_no_address(text: str) -> None:
    refused(InputError, "address-invalid", lambda: HubAddress.parse(text))


def test_addresses_are_written_as_they_are_read() -> None:
    for text in ("hf:a/b", f"hf:a/b@{COMMIT}", "hf:a/b/c/d.pth@main", "hf:a-1/b.c@refs/pr/1"):
        assert str(HubAddress.parse(text)) == text


def test_known_weights_have_addresses_and_no_made_up_commits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {each.address: each for each in known_weights()}
    assert "hf:spc819/Medal-S-V1.0" in found
    shown = json.loads(call("download", "--list", "--json").stdout)
    assert [each["address"] for each in shown] == list(found)
    listed = call("download", "--list").stdout
    for text, known in found.items():
        assert text in listed
        assert HubAddress.parse(text).revision == known.commit
    monkeypatch.setattr(
        hub_address, "known_weights", lambda: (KnownWeights("hf:a/b", "", commit=COMMIT),)
    )
    assert HubAddress.parse("hf:a/b").revision == COMMIT
    assert HubAddress.parse("hf:a/b@main").revision == "main"


def test_the_list_of_weights_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {each.address: each for each in known_weights()}
    file = tmp_path / "weights.toml"
    monkeypatch.setenv("MEDALS_RT_WEIGHTS", str(file))
    file.write_text(
        "[[weights]]\n"
        f'address = "hf:spc819/Medal-S-V1.0"\nholds = "our mirror"\ncommit = "{COMMIT}"\n'
        '[[weights]]\naddress = "hf:ours/model"\nholds = "ours"\nnotice = "ours alone"\n',
        encoding="utf-8",
    )
    found = {each.address: each for each in known_weights()}
    assert set(found) == {*shipped, "hf:ours/model"}
    assert HubAddress.parse("hf:spc819/Medal-S-V1.0").revision == COMMIT
    known = known_as(HubAddress.parse(f"hf:ours/model/part@{COMMIT}"))
    assert known is not None
    assert known.notice == "ours alone"
    assert known_as(HubAddress("nobody/knows")) is None
    for content in ("[[weights]]\naddress = 1", "[[weights", '[[weights]]\ncolor = "red"'):
        file.write_text(content, encoding="utf-8")
        refused(InputError, "weights-file-invalid", known_weights)
    file.unlink()
    refused(InputError, "weights-file-invalid", known_weights)


def test_the_command_says_what_it_did(hub: FakeHub, tmp_path: Path) -> None:
    first = call("download", hub.address, "--to", tmp_path)
    assert first.exit_code == 0, first.output
    assert hashlib.sha256(WEIGHTS).hexdigest() in first.stdout
    assert "text/pytorch_model.bin" in first.stderr
    again = json.loads(call("download", hub.address, "--to", tmp_path, "--json").stdout)
    assert again["fetched_bytes"] == 0
    assert again["folder"] == str(tmp_path)
    assert {each["file"] for each in again["files"]} == NEEDED
    assert_one_line(call("download"), 2)


@pytest.fixture
def hub_of_bundles(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    folder = tiny_bundle.folder
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    with serving(FakeHub(files)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_a_bundle_is_opened_by_its_address(
    hub_of_bundles: FakeHub, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = call("info", "--bundle", hub_of_bundles.address, "--json")
    assert result.exit_code == 0, result.output
    opened = Bundle.open(resolve_bundle(Path(hub_of_bundles.address)))
    assert opened.hash == tiny_bundle.hash
    assert opened.folder.is_relative_to(tmp_path / "cache")
    asked = len(hub_of_bundles.requests)
    monkeypatch.setenv("MEDALS_RT_BUNDLE", hub_of_bundles.address)
    assert call("info").exit_code == 0
    assert len(hub_of_bundles.requests) == asked
    graph = opened.graph_path(1, "refiner")
    graph.write_bytes(bytes(graph.stat().st_size))
    result = call("info")
    assert_one_line(result, 2)
    error = error_of(result)
    assert isinstance(error, InputError)
    assert error.code == "file-tampered"


def test_the_download_of_a_bundle_shows_its_progress(
    hub_of_bundles: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @contextmanager
    def progress() -> Iterator[Callable[[str, int, int], None]]:
        yield lambda name, _done, _total: seen.append(name)

    monkeypatch.setattr(out, "progress", progress)
    case = write_case(tmp_path / "case.npz")
    words = ("--bundle", hub_of_bundles.address, "--precision", "fp32")
    output = ("--output", tmp_path / "s.npz")
    result = call("run", "--input", case, *words, *output, "--runner", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "coarse/image_encoder.onnx, MB" in seen
    assert "coarse" in seen, "the windows of the run follow"


def test_no_file_of_a_bundle_is_hashed_twice(
    hub_of_bundles: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = hub_of_bundles.address
    folder = resolve_bundle(address)
    later_ns = time.time_ns() + 10**10  # files that were written just now are hashed each time
    monkeypatch.setattr(manifest.time, "time_ns", lambda: later_ns)
    monkeypatch.setattr(manifest, "_HASHED", {})
    digest, hashed = hashlib.file_digest, []

    def counted(stream: Any, name: str) -> Any:
        hashed.append(Path(stream.name))
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(2):
        Bundle.open(resolve_bundle(address))
    assert len(hashed) == len(set(hashed)) == len(content(folder))
    graph = Bundle.open(folder, verify=False).graph_path(1, "refiner")
    graph.write_bytes(bytes(graph.stat().st_size))
    refused(InputError, "file-tampered", lambda: resolve_bundle(address))


def test_a_bundle_in_a_folder_of_a_repository(hub_of_bundles: FakeHub, tiny_bundle: Bundle) -> None:
    files = hub_of_bundles.files
    files.update({f"small/{name}": files.pop(name) for name in list(files)})
    folder = resolve_bundle(f"hf:{REPOSITORY}/small@{COMMIT}")
    assert folder.name == "small"
    assert Bundle.open(folder).hash == tiny_bundle.hash
    refused(InputError, "revision-not-pinned", lambda: resolve_bundle(f"hf:{REPOSITORY}/small"))
