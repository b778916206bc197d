"""MONAI Label's client as 3D Slicer has it, and as its package does, against a server."""

import gzip
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import read_labels
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from tests.serve.serving import RUNNER, SENTENCE, Running, running, until

ASKED = (SENTENCE, "Right kidney in abdominal CT")
SLICER = Path("monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py")
pytestmark = [
    pytest.mark.usefixtures("careless_client"),  # the clients leave files and connections open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TOKEN = "a-token-of-twenty-letters"  # noqa: S105


def client_module(of: str) -> ModuleType:
    """Load the file alone: its package wants PyTorch, Slicer's wants Slicer."""
    path = Path(sys.prefix) / SLICER
    if of == "package":
        spec = importlib.util.find_spec("monailabel")
        path = Path(spec.origin or "").parent / "client/client.py" if spec is not None else path
    if not path.is_file() or sys.version_info >= (3, 13):
        pytest.skip("the wheel monailabel isn't installed, or Python has no module cgi any more")
    spec = importlib.util.spec_from_file_location(f"monailabel_client_of_{of}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'cgi' is deprecated", DeprecationWarning)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["slicer", "package"])
def monai(request: pytest.FixtureRequest, served: Running, tmp_path: Path) -> Any:
    folder = tmp_path / "answers"
    folder.mkdir()
    return client_module(request.param).MONAILabelClient(served.address, str(folder), "someone")


def slicer(served: Running, tmp_path: Path) -> Any:
    return client_module("slicer").MONAILabelClient(served.address, str(tmp_path), "someone")


def refused(work: Any, *given: Any, **more: Any) -> Any:
    """What the client raises, with the message that Slicer shows."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a class of each client's own
        work(*given, **more)
    assert type(caught.value).__name__ == "MONAILabelClientException"
    return caught.value


def as_slicer_asks(**options: Any) -> dict[str, Any]:
    return {**options, "result_extension": ".nrrd", "result_dtype": "uint8"}


def test_a_session_of_slicer(
    tiny_bundle: Bundle, served: Running, monai: Any, scan: Path, tmp_path: Path
) -> None:
    """Connect, upload, segment, end: voxels and place are those of the command line."""
    assert not monai.auth_enabled()
    info = monai.info()
    assert not info.get("config")  # Slicer takes it for a server that is too old
    assert info["labels"] == []
    assert {name: each["type"] for name, each in info["models"].items()} == {
        "medal-s": "segmentation", "medal-s-hybrid": "scribbles",
    }  # fmt: skip
    assert info["models"]["medal-s"]["config"]["prompts"] == ""
    assert monai.datastore() == {"objects": {}}

    before = served.files()
    session = monai.create_session(str(scan))["session_id"]
    assert monai.get_session(session)["expiry"] > 0
    params = as_slicer_asks(prompts="; ".join(ASKED), modality="as the image says", kind="anatomy")
    result, answer = monai.infer("medal-s", "scan", params, session_id=session)
    output = tmp_path / "cli.nii.gz"
    options = RunOptions(bundle=tiny_bundle.folder, **RUNNER)
    run_job(Job(scan, output, PromptSource(sentences=ASKED), options=options))
    expected, got = sitk.ReadImage(str(output)), sitk.ReadImage(result)
    assert result.endswith(".nrrd")
    assert got.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(got), sitk.GetArrayFromImage(expected))
    for place in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(got, place)(), getattr(expected, place)(), atol=1e-4)
    assert answer["label_names"] == {"Liver": 1, "Right kidney": 2}
    assert answer["not_found"] == []
    assert [each["voxels"] for each in answer["classes"]] == [
        int((sitk.GetArrayFromImage(expected) == label).sum()) for label in (1, 2)
    ]
    until(lambda: len(served.files()) == len(before) + 3)  # session, image's folder, image
    monai.remove_session(session)
    assert served.files() == before
    assert refused(monai.get_session, session).status_code == 404


def test_a_drawing_of_slicer_is_hybrid_mode(
    tiny_bundle: Bundle, served: Running, scan: Path, tmp_path: Path
) -> None:
    """The chosen segment and the scribbles in the foreground are the mask; the rest isn't."""
    monai = slicer(served, tmp_path)
    session = monai.create_session(str(scan))["session_id"]
    monai.infer("medal-s", "scan", as_slicer_asks(prompts=SENTENCE), session_id=session)
    shape = nibabel.load(scan).shape
    drawn = np.zeros(shape, np.uint8)
    drawn[4:9, 4:14, 2:8] = 1  # the segment
    drawn[9:12, 4:14, 2:8] = 3  # scribbles in the foreground
    drawn[4:9, 4:6, 2:8] = 2  # and in the background
    mask = np.isin(drawn, (1, 3)).astype(np.uint8)
    files = {}
    for name, array in (("drawn", drawn), ("mask", mask)):
        files[name] = tmp_path / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, nibabel.load(scan).affine), files[name])
    names = ("Liver", "background_scribbles", "foreground_scribbles")
    infos = [{"name": name, "id": number} for number, name in enumerate(names, 1)]
    params = as_slicer_asks(roi=[], label_info=infos, selected_label_name="Liver")
    result, answer = monai.infer(
        "medal-s-hybrid", "scan", params, str(files["drawn"]), session_id=session
    )
    output = tmp_path / "cli.nii.gz"
    options = RunOptions(bundle=tiny_bundle.folder, **RUNNER)
    source = PromptSource(sentences=(SENTENCE,))
    run_job(Job(scan, output, source, spatial_prompts=files["mask"], options=options))
    got = sitk.GetArrayFromImage(sitk.ReadImage(result))
    np.testing.assert_array_equal(got, sitk.GetArrayFromImage(sitk.ReadImage(str(output))))
    assert answer["label_names"] == {"Liver": 1}
    error = refused(monai.infer, "medal-s-hybrid", "scan", params, session_id=session)
    assert "nothing was drawn" in error.msg
    monai.remove_session(session)


def test_what_is_refused_says_why_where_slicer_shows_it(
    served: Running, scan: Path, tmp_path: Path
) -> None:
    monai = slicer(served, tmp_path)
    before = served.files()
    wrong = tmp_path / "wrong.nii.gz"
    wrong.write_bytes(b"no image")
    for work in (
        lambda: monai.create_session(str(wrong)),
        lambda: monai.upload_image(str(scan), "scan"),
        lambda: monai.save_label("scan", str(scan), params={}),
        lambda: monai.infer("medal-s", "scan", {"prompts": SENTENCE}),
        lambda: monai.infer("medal-s", "scan", {"prompts": SENTENCE}, session_id="x"),
    ):
        assert '"detail"' in refused(work).msg
    assert served.files() == before
    session = monai.create_session(str(scan))["session_id"]
    before = served.files()
    for prompts, said in (("", "nothing is asked for"), ("Qwertyuiop in CT", "Qwertyuiop")):
        error = refused(monai.infer, "medal-s", "scan", {"prompts": prompts}, session_id=session)
        assert said in error.msg
    assert served.files() == before
    monai.remove_session(session)


def test_an_image_may_come_with_the_request(served: Running, scan: Path, tmp_path: Path) -> None:
    monai = slicer(served, tmp_path)
    before = served.files()
    result, answer = monai.infer("medal-s", "", {"prompts": SENTENCE}, file=str(scan))
    assert result.endswith(".nii.gz")
    assert answer["label_names"] == {"Liver": 1}
    assert (read_labels(Path(result)).labels_dhw == 1).any()
    until(lambda: served.files() == before)


def test_classes_without_a_voxel_are_not_named() -> None:
    """Slicer would call the next label by the name of one that isn't there."""
    from medals_serve.protocols.monailabel import _answer, _Opened

    class Ended:
        name = "job"

        def state(self, _: None) -> dict[str, Any]:
            classes = [
                {"name": name, "sentence": f"{name} in CT", "label": label, "voxels": voxels}
                for label, (name, voxels) in enumerate((("Liver", 0), ("Spleen", 5)), 1)
            ]
            return {"classes": classes, "notes": [], "incomplete": None}

    state: Any = _Opened(None)  # type: ignore[arg-type]
    ended: Any = Ended()
    said = json.loads(bytes(_answer(ended, state, Path("x.nii.gz"), "json").body))
    assert said["label_names"] == {"Spleen": 2}
    assert said["not_found"] == ["Liver in CT"]
    assert state.sentences == {"Spleen": "Spleen in CT"}


def test_a_client_that_goes_cancels_its_job(served: Running, scan: Path, tmp_path: Path) -> None:
    monai = slicer(served, tmp_path)
    session = monai.create_session(str(scan))["session_id"]
    owner = served.server.config.app.state.service.sessions.find(session)
    served.gate.clear()
    try:
        with served.http() as http:
            form = {"params": (None, json.dumps({"prompts": SENTENCE}))}
            place = f"/infer/medal-s?session_id={session}"
            request = http.build_request("POST", place, files=form)
        with served.asked(request):
            until(lambda: any(job.status == "running" for job in tuple(owner.jobs.values())))
            (job,) = owner.jobs.values()
        until(lambda: job.status == "canceled")
        until(lambda: not owner.jobs)
    finally:
        served.gate.set()
    monai.remove_session(session)


@contextmanager
def in_session(served: Running, scan: Path) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """A session, and requests to infer in it as forms of these parts."""
    with served.http() as http:
        sent = http.put("/session/", files={"file": ("scan.nii.gz", scan.read_bytes())})
        session = sent.json()["session_id"]

        def infer(model: str, *parts: Any) -> Any:
            return http.post(f"/infer/{model}?session_id={session}", files=parts)

        yield served.server.config.app.state.service.sessions.find(session), infer
        http.delete(f"/session/{session}")


def params(**given: Any) -> tuple[str, tuple[None, str]]:
    return "params", (None, json.dumps(given))


def test_a_drawing_leaves_nothing_where_its_job_is_refused(
    served: Running, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = ("label", ("drawn.nii.gz", drawn_on(scan)))
    asked = params(label_info=[{"name": "Liver", "id": 1}], selected_label_name="Liver")
    with in_session(served, scan) as (owner, infer):
        before, held = served.files(), owner.bytes
        for parts, code in (
            ((label, asked), "queue-full"),
            ((label, label, asked), "queue-full"),
            ((label, params(selected_label_name="Spleen")), "no-drawing"),
            ((label, ("params", (None, "nonsense"))), "params-invalid"),
        ):
            with monkeypatch.context() as patch:
                engine = served.server.config.app.state.service.engine
                patch.setattr(engine, "_max_queue", 0)
                assert infer("medal-s-hybrid", *parts).json()["code"] == code
            assert (served.files(), owner.bytes, owner.masks) == (before, held, {})


def drawn_on(scan: Path) -> bytes:
    found = nibabel.load(scan)
    labels = np.zeros(found.shape, np.uint8)
    labels[4:9, 4:14, 2:8] = 1
    return gzip.compress(nibabel.Nifti1Image(labels, found.affine).to_bytes())


def test_ohif_is_refused_what_it_would_not_show(
    text_bundle: Bundle, scan: Path, tmp_path: Path
) -> None:
    """It knows labels by their values among those of the model."""
    with (
        running(text_bundle, tmp_path / "data", studies="dicomweb+http://nowhere") as served,
        in_session(served, scan) as (owner, infer),
    ):
        owner.state.of_archive = True
        before = served.files()
        for prompts, status in (("Esophagus in CT; Liver in CT", 422), ("Liver in CT", 200)):
            asked = params(prompts=prompts, result_extension=".nrrd")
            answer = infer("medal-s", asked)
            assert answer.status_code == status, answer.text
            if status == 422:
                assert answer.json()["code"] == "class-not-listed"
                assert "Esophagus" in answer.json()["detail"]
                until(lambda: served.files() == before)


def test_the_token_is_the_password(tiny_bundle: Bundle, scan: Path, tmp_path: Path) -> None:
    """As Slicer logs in; limits are those of the API."""
    with running(tiny_bundle, tmp_path / "data", token=TOKEN, max_sessions=1) as served:
        monai = slicer(served, tmp_path)
        assert monai.auth_enabled()
        assert not monai.auth_valid_token()
        for work in (monai.info, lambda: monai.auth_token("someone", "a guess")):
            assert refused(work).status_code == 401
        monai.update_auth(monai.auth_token("someone", TOKEN))
        assert monai.auth_valid_token()
        assert monai.info()["models"]
        monai.create_session(str(scan))
        assert refused(monai.create_session, str(scan)).status_code == 503


@pytest.mark.parametrize(
    "body",
    [b"", b"--b", b"--b\r\n\r\nx", b"--b\r\nA: b\r\n\r\nx", b"--b\r\n" + b"A" * 9000, b"\x00" * 99],
)
def test_damaged_forms_are_refused(served: Running, body: bytes) -> None:
    before = served.files()
    with served.http() as http:
        form = "multipart/form-data"
        long = f"{form}; boundary={'b' * 5000}"
        for kind in (f"{form}; boundary=b", form, long, "text/plain"):
            answer = http.put("/session/", content=body, headers={"Content-Type": kind})
            assert (answer.status_code, answer.json()["code"]) == (400, "form-invalid")
    assert served.files() == before
