"""nnInteractive's client itself, unmodified, against a server."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.inference.corrections import Correction
from medals_rt.io.registry import read_case, read_labels
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_rt.pipeline.segmenter import load
from medals_serve.disk import held_bytes
from medals_serve.protocols import frames, nninteractive
from tests.serve.serving import RUNNER, SHAPE, Running, image, running, until

SPACING = (4.0, 2.0, 3.0)
pytestmark = [
    pytest.mark.usefixtures(
        "careless_client"
    ),  # a client that is refused leaves its connection open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CLASS = "CT/anatomy/liver"
TOKEN = "a-token-of-twenty-letters"  # noqa: S105


def client() -> Any:
    """The module of the client; without it a test is skipped."""
    return pytest.importorskip(
        "nnInteractive.inference.remote", reason="nninteractive-client isn't installed"
    )


@contextmanager
def session(served: Running, place: str = CLASS, **given: Any) -> Iterator[Any]:
    with client().nnInteractiveRemoteInferenceSession(
        f"{served.address}/nninteractive/{place}", **given
    ) as found:
        yield found


@pytest.fixture
def remote(served: Running) -> Iterator[Any]:
    """A session with an image, its buffer blank."""
    with session(served) as found:
        found.set_image(image()[None].astype(np.float32), {"spacing": np.array(SPACING)})
        found.set_target_buffer(np.zeros(SHAPE, np.uint8))
        yield found


def expected(bundle: Bundle, tmp_path: Path, mask: Any = None) -> Any:
    """What the command line finds in a file that says no more than the client does."""
    files = {}
    for name, array in (("scan", image().astype(np.float32)), ("mask", mask)):
        if array is not None:
            files[name] = tmp_path / f"{name}.nii.gz"
            nifti = nibabel.Nifti1Image(array.transpose(), None)
            nifti.header.set_zooms(SPACING[::-1])
            nifti.header.set_xyzt_units("mm")
            nibabel.save(nifti, files[name])
    output = tmp_path / "labels.npz"
    options = RunOptions(bundle=bundle.folder, **RUNNER)
    source = PromptSource(sentences=("Liver in CT",))
    run_job(Job(files["scan"], output, source, spatial_prompts=files.get("mask"), options=options))
    return read_labels(output).labels_dhw == 1


def corrected(bundle: Bundle, tmp_path: Path, mask: Any, *steps: Any) -> Any:
    """What the library finds, guided by a mask, once its result is corrected step by step."""
    expected(bundle, tmp_path)  # writes the scan
    volume = read_case(tmp_path / "scan.nii.gz").volume
    corrections: list[Correction] = []
    with load(bundle.folder, **RUNNER) as segmenter:

        def run() -> Any:
            found = segmenter.segment(
                volume, "Liver in CT", spatial_prompts=mask, corrections=corrections
            )
            return found.labels_dhw

        labels = run()
        for step in steps:
            corrections.append(Correction.of(labels, step(labels), [1]))
            labels = run()
    return labels == 1


def drawing() -> Any:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:8, 4:14, 5:12] = 1
    return mask


def test_a_mask_and_scribbles_guide_the_run(
    tiny_bundle: Bundle, remote: Any, tmp_path: Path
) -> None:
    """Voxels are those of hybrid mode, corrected where scribbled; undo goes back step by step."""
    assert remote.supports_initial_label
    assert remote.supports_undo
    assert remote.original_image_shape == (1, *SHAPE)
    assert remote.undo() is False
    remote.add_initial_seg_interaction(drawing())
    np.testing.assert_array_equal(remote.target_buffer, drawing())
    box = remote._predict()
    first = remote.target_buffer.copy()
    np.testing.assert_array_equal(first, expected(tiny_bundle, tmp_path, drawing()))
    assert box is not None

    scribble = np.zeros(SHAPE, np.uint8)
    scribble[9, 15:20, 4:16] = 1
    assert not (first.astype(bool) & scribble.astype(bool)).all()
    remote.add_scribble_interaction(scribble, include_interaction=True)
    second = remote.target_buffer.copy()
    add = lambda labels: labels | scribble  # noqa: E731
    np.testing.assert_array_equal(second, corrected(tiny_bundle, tmp_path, drawing(), add))
    more = np.zeros(SHAPE, np.uint8)
    more[0, :3, :3] = 1
    assert not (second.astype(bool) & more.astype(bool)).all()
    remote.add_scribble_interaction(more, include_interaction=True)
    third = corrected(tiny_bundle, tmp_path, drawing(), add, lambda labels: labels | more)
    np.testing.assert_array_equal(remote.target_buffer, third)
    assert remote.undo() is True
    np.testing.assert_array_equal(remote.target_buffer, second)
    assert remote.undo() is True
    np.testing.assert_array_equal(remote.target_buffer, first)
    erased = np.zeros((4, 24, 20), np.uint8)
    erased[:] = 1
    remote.add_lasso_interaction(
        erased, include_interaction=False, interaction_bbox=[[0, 4], [0, 24], [0, 20]]
    )
    take = lambda labels: labels * (np.arange(len(labels)) >= 4)[:, None, None]  # noqa: E731
    third = corrected(tiny_bundle, tmp_path, drawing(), take)
    np.testing.assert_array_equal(remote.target_buffer, third)
    assert [remote.undo() for _ in range(4)] == [True, True, True, False]
    assert not remote.target_buffer.any()


def test_without_a_drawing_the_name_alone_is_asked_for(
    tiny_bundle: Bundle, remote: Any, tmp_path: Path
) -> None:
    blank = np.zeros(SHAPE, np.uint8)
    remote.add_scribble_interaction(blank, include_interaction=True)
    np.testing.assert_array_equal(remote.target_buffer, expected(tiny_bundle, tmp_path))
    remote.reset_interactions()
    assert not remote.target_buffer.any()
    assert remote.undo() is False


def test_what_changes_nothing_keeps_what_is_seen(served: Running, remote: Any) -> None:
    """A scribble over what is found already, and another run: corrections stay, to the voxel."""
    remote.add_initial_seg_interaction(drawing(), run_prediction=True)
    more = np.zeros(SHAPE, np.uint8)
    more[0, :3, :3] = 1
    remote.add_scribble_interaction(more, include_interaction=True)
    seen = remote.target_buffer.copy()
    assert seen.any()
    remote.add_scribble_interaction(seen * (np.arange(20) < 10), include_interaction=True)
    np.testing.assert_array_equal(remote.target_buffer, seen)
    remote._predict()
    np.testing.assert_array_equal(remote.target_buffer, seen)
    owner = served.server.config.app.state.service.sessions.find(remote._lease_token)
    assert [job.corrects is None for job in owner.jobs.values()] == [True, False, False, False]


def test_what_was_taken_away_stays_away(tiny_bundle: Bundle, remote: Any, tmp_path: Path) -> None:
    """Scribbles that wait for a run add up."""
    remote.add_initial_seg_interaction(drawing(), run_prediction=True)
    away, more = (np.zeros(SHAPE, np.uint8) for _ in range(2))
    away[4:6], more[0, :3, :3] = 1, 1
    assert (remote.target_buffer.astype(bool) & away.astype(bool)).any()
    remote.add_scribble_interaction(away, include_interaction=False, run_prediction=False)
    remote.add_scribble_interaction(more, include_interaction=True, run_prediction=True)
    both = corrected(tiny_bundle, tmp_path, drawing(), lambda labels: (labels * (1 - away)) | more)
    np.testing.assert_array_equal(remote.target_buffer, both)


def test_masks_go_with_what_they_guided(served: Running, remote: Any) -> None:
    """Else a session would hold one more for each mask that was tried."""
    before = served.files()
    owner = served.server.config.app.state.service.sessions.find(remote._lease_token)
    held = owner.bytes
    for _ in range(2):
        remote.add_initial_seg_interaction(drawing(), run_prediction=True)
        remote.add_scribble_interaction(drawing()[::-1].copy(), include_interaction=True)
        remote.reset_interactions()
    assert served.files() == before
    assert owner.bytes == held


def test_a_client_is_kept_waiting_past_its_patience(
    served: Running, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """A run whose first bytes come before its end, lest clients give up, has the same voxels."""
    slowly = nninteractive._slowly

    async def opening(run: Any) -> AsyncIterator[bytes]:
        async for part in slowly(run):
            yield part
            served.gate.set()

    monkeypatch.setattr(nninteractive, "PATIENCE_S", 0.3)
    monkeypatch.setattr(nninteractive, "TRICKLE_S", 0.3)
    monkeypatch.setattr(nninteractive, "_slowly", opening)
    with session(served) as found:
        found.set_image(image()[None].astype(np.float32), {"spacing": SPACING})
        found.set_target_buffer(np.zeros(SHAPE, np.uint8))
        served.gate.clear()
        try:
            found.add_initial_seg_interaction(drawing(), run_prediction=True)
        finally:
            served.gate.set()
        labels = expected(tiny_bundle, tmp_path, drawing())
        np.testing.assert_array_equal(found.target_buffer, labels)
        owner = served.server.config.app.state.service.sessions.find(found._lease_token)
        assert len(owner.jobs) == 1, "it can be corrected"
        assert found.undo() is True
        assert not found.target_buffer.any()
        before = served.files()
        found.reset_interactions()
        assert not owner.jobs
        assert len(served.files()) < len(before)


def test_what_is_refused_says_why_where_clients_show_it(served: Running, remote: Any) -> None:
    for place, said in (
        ("CT/anatomy/right_kidney", "where left is"),
        ("CT/anatomy/qwertyuiop", "qwertyuiop"),
        ("XY/anatomy/liver", "XY"),
    ):
        with pytest.raises(client().ServerAtCapacityError, match=said), session(served, place):
            pass
    for work, said in (
        (lambda: remote.add_point_interaction((1, 2, 3), include_interaction=True), "points"),
        (lambda: remote.set_target_buffer(np.zeros((2, 3, 4))), "shape"),
        (lambda: remote.add_scribble_interaction(np.ones((1, 2, 3), np.uint8), True), "shape"),
        (lambda: remote.set_image(image()[None], {}), "spacing"),
    ):
        with pytest.raises(client().ServerAtCapacityError, match=said):
            work()


STATED = '{"image_properties": {"spacing": [4, 2, 3]}}'


def test_an_image_that_is_refused_leaves_none_before_it(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Else what is drawn on another patient's would be found in it."""
    with running(tiny_bundle, tmp_path, max_upload_bytes=100_000) as served, asking(served) as ask:
        for meta, sent, code in (
            ("{}", image(1)[None], "no-spacing"),
            ("[]", image(1)[None], "params-invalid"),
            (f"{STATED[:-1]}, {' ' * 20_000}{STATED[1:]}", image(1)[None], "json-key-repeated"),
            (STATED, b"NNIAxxxx", "array-damaged"),
            (STATED, b"x" * 100_001, "body-too-large"),
        ):
            assert ask("set_image", image()[None], STATED).status_code == 200
            ask("add_initial_seg_interaction", drawing(), "{}")
            refused = ask("set_image", sent, meta)
            assert (refused.status_code, refused.json()["code"]) == (503, code)
            assert [name for name in served.files() if "." in name] == [], code
            for route in ("add_initial_seg_interaction", "add_scribble_interaction"):
                assert ask(route, drawing(), "{}").json()["code"] == "no-image", code
            assert [ask(route, b"", "{}").content for route in ("undo", "predict")] == [b"", b""]


def test_an_array_has_room_before_it_is_unpacked(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few hundred bytes hold gigabytes."""
    zeros = np.zeros((1, 64, 64, 64))
    with (
        running(tiny_bundle, tmp_path, max_session_bytes=2**20) as served,
        asking(served) as ask,
    ):
        readers = served.server.config.app.state.service.readers
        read, written = readers.read, []

        def counted(*given: Any, **more: Any) -> Any:
            written.append(more.get("writes"))
            return read(*given, **more)

        monkeypatch.setattr(readers, "read", counted)
        refused = ask("set_image", zeros, STATED)
        assert (refused.status_code, refused.json()["code"]) == (503, "session-full")
        assert written == []
        small = image()[None].astype(np.float32)
        assert ask("set_image", small, STATED).status_code == 200
        assert written[0] == pytest.approx(small.nbytes, abs=2**12)
        (session,) = served.server.config.app.state.service.sessions
        assert session.bytes == held_bytes(session.folder)


def test_a_drawing_of_another_shape_is_not_read(
    remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be as large as an image may be."""
    load, kept = np.load, []

    def counted(*given: Any, **more: Any) -> Any:
        kept.append(load(*given, **more))
        return kept[-1]

    monkeypatch.setattr(np, "load", counted)
    large = np.zeros((30, 40, 50), np.uint8)
    with pytest.raises(client().ServerAtCapacityError, match="the drawing has the shape"):
        remote.add_scribble_interaction(large, include_interaction=True)
    assert [type(each) for each in kept] == [np.memmap]


@contextmanager
def asking(served: Running) -> Iterator[Callable[..., httpx.Response]]:
    """Requests as no client sends them, to a lease of their own."""
    with served.http() as http:
        place = f"/nninteractive/{CLASS}"
        headers = {"X-Lease-Token": http.post(f"{place}/claim").json()["lease_token"]}

        def ask(route: str, array: Any, meta: str) -> httpx.Response:
            content = array
            if not isinstance(array, bytes):
                content = b"".join(frames.pack(frames.NNINTERACTIVE, array.shape, [array]))
            meant = {**headers, "X-Meta": meta}
            return http.post(f"{place}/{route}", content=content, headers=meant)

        yield ask
        http.post(f"{place}/release", headers=headers)


def test_numbers_that_are_none_are_refused(served: Running) -> None:
    with asking(served) as ask:
        for spacing in (
            '["a", 1, 1]', "[[1], 1, 1]", "[1, 1]", "[Infinity, 1, 1]", "[1, -1, 1]", "null",
            "[1e300, 1, 1]", f"[1{'0' * 400}, 1, 1]", '{"z": 1}',
        ):  # fmt: skip
            meta = '{"image_properties": {"spacing": ' + spacing + "}}"
            answer = ask("set_image", image()[None], meta)
            assert (answer.status_code, answer.json()["code"]) == (503, "no-spacing"), spacing
        for meta in ('{"image_properties": []}', "{}"):
            assert ask("set_image", image()[None], meta).json()["code"] == "no-spacing"
        assert ask("set_image", image()[None], STATED).status_code == 200
        for box in ("[[0, Infinity], [0, 1], [0, 1]]", "[[0, NaN], 1]", "[null]", '"x"'):
            meta = '{"interaction_bbox": ' + box + "}"
            answer = ask("add_scribble_interaction", np.ones((1, 1, 1), np.uint8), meta)
            assert (answer.status_code, answer.json()["code"]) == (503, "shapes-differ"), box


def test_voxels_are_worked_on_in_threads(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one large image would keep all clients waiting."""
    threads: dict[str, set[str]] = {}

    def watch(of: Any, name: str) -> None:
        work = getattr(of, name)

        def watched(*given: Any) -> Any:
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return work(*given)

        monkeypatch.setattr(of, name, watched)

    for name in ("_read_mask", "_packed", "_guide", "_found", "_answer", "_content"):
        watch(nninteractive, name)
    watch(nninteractive._Lease, "seen")
    remote.add_initial_seg_interaction(drawing(), run_prediction=True)
    remote.add_scribble_interaction(drawing()[::-1].copy(), include_interaction=True)
    remote.undo()
    monkeypatch.setattr(nninteractive, "PATIENCE_S", -1.0)
    remote.add_scribble_interaction(drawing()[::-1].copy(), include_interaction=True)
    assert len(threads) == 7
    assert {name for each in threads.values() for name in each} == {"AnyIO worker thread"}


def test_a_lease_is_a_session(served: Running) -> None:
    until(lambda: served.files() == [])  # sessions of other tests are gone
    with session(served) as found:
        assert found.ping()
        assert found.lease_status()["remaining_seconds"] > 0
        assert found.heartbeat() > 0
        found.set_image(image()[None], {"spacing": SPACING})
        found.set_image(image(1)[None], {"spacing": SPACING})
        assert len(served.files()) == 3
        service = served.server.config.app.state.service
        service.end_session(service.sessions.find(found._lease_token))
        with pytest.raises(client().SessionExpiredError, match="time is over"):
            found.lease_status()
    until(lambda: served.files() == [])
    with session(served) as found:
        pass
    until(lambda: served.files() == [])


def test_a_client_that_gives_up_cancels_its_job(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(served) as found:
        found.set_image(image()[None], {"spacing": SPACING})
        owner = served.server.config.app.state.service.sessions.find(found._lease_token)
        asking: list[httpx.Request] = []

        def catch(request: httpx.Request) -> None:
            asking.append(request)
            raise httpx.ReadTimeout("caught")

        with monkeypatch.context() as patch:
            patch.setitem(found._http.event_hooks, "request", [catch])
            with pytest.raises(httpx.ReadTimeout):
                found.add_initial_seg_interaction(drawing(), run_prediction=True)
        served.gate.clear()
        try:
            with served.asked(asking[0]):
                until(lambda: owner.jobs)
                (job,) = owner.jobs.values()
            until(lambda: job.status == "canceled")
            until(lambda: not owner.jobs)
        finally:
            served.gate.set()


def test_limits_and_the_token_are_those_of_the_api(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path, token=TOKEN, max_sessions=1, max_voxels=1000) as served:
        with pytest.raises(httpx.HTTPStatusError, match="401"), session(served):
            pass
        with session(served, api_key=TOKEN) as found:
            assert found.ping()
            with pytest.raises(client().ServerAtCapacityError, match="voxels"):
                found.set_image(image()[None], {"spacing": SPACING})
            full = pytest.raises(client().ServerAtCapacityError, match="sessions")
            with full, session(served, api_key=TOKEN):
                pass
