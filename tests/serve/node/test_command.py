"""A node with a real Orthanc as its peer: killed, restarted, and with several patients at once."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import MissingFileError
from tests.cli.helpers import assert_refused, call
from tests.dicom import write_series
from tests.orthanc import free_port, running_orthanc
from tests.serve.node.nodes import TITLE, running_node, wait_for, write_configuration

AFFINE = np.diag([12.0, 12.0, 15.0, 1.0])
VALUES = np.random.default_rng(0).integers(-1000, 1000, (6, 16, 20)).astype(np.int16)
KINDS = ("RTSTRUCT", "SEG", "SR")


def write_patient(folder: Path, patient: int) -> None:
    def change(k: int, data: pydicom.Dataset) -> None:
        data.PatientID = f"patient{patient}"
        data.StudyInstanceUID = f"1.2.3.{patient}"
        data.SeriesInstanceUID = f"1.2.3.{patient}.1"
        data.FrameOfReferenceUID = f"1.2.3.{patient}.9"
        data.SOPInstanceUID = f"1.2.3.{patient}.1.{k + 1}"

    write_series(folder, VALUES + patient, AFFINE, change=change)


def test_the_command_finds_the_node(tmp_path: Path) -> None:
    done = call("listen", tmp_path / "absent.toml")
    assert_refused(done, MissingFileError)


@pytest.mark.slow  # three starts of a process with a model
def test_nothing_is_lost_and_nothing_comes_twice(tiny_bundle: Bundle, tmp_path: Path) -> None:
    port = free_port()
    nodes = {
        "node": {"AET": TITLE, "Host": "127.0.0.1", "Port": port},
        "stranger": {
            "AET": TITLE, "Host": "127.0.0.1", "Port": port, "LocalAet": "STRANGER",
        },
    }  # fmt: skip
    with running_orthanc(tmp_path / "orthanc", nodes) as orthanc:
        for patient in (1, 2, 3):
            write_patient(tmp_path / f"patient{patient}", patient)
            orthanc.upload(tmp_path / f"patient{patient}")

        def send(patient: int, to: str = "node") -> dict[str, object]:
            (series,) = orthanc.series(SeriesInstanceUID=f"1.2.3.{patient}.1")
            return dict(
                orthanc.rest("POST", f"/modalities/{to}/store", json={"Resources": [series]})
            )

        def results() -> list[tuple[str, str]]:
            made = (each for kind in KINDS for each in orthanc.datasets(Modality=kind))
            return sorted((str(each.PatientID), str(each.Modality)) for each in made)

        configuration = write_configuration(tmp_path, port, orthanc.dicom)
        with running_node(configuration, tiny_bundle.folder) as node:
            with pytest.raises(OSError, match=r"50[0-9]"):  # requests' error is one
                send(1, "stranger")
            wait_for(lambda: "rejected an association of 'STRANGER'" in node.says(), node)
            assert send(1)["FailedInstancesCount"] == 0
            node.kill()  # acknowledged, but not yet segmented
        with running_node(configuration, tiny_bundle.folder) as node:
            both = [threading.Thread(target=send, args=(patient,)) for patient in (2, 3)]
            for each in both:
                each.start()
            for each in both:
                each.join()
            wait_for(lambda: "segmented" in node.says(), node)
            node.kill()  # some series are segmented, some results sent
        every = sorted((f"patient{n}", kind) for n in (1, 2, 3) for kind in KINDS)
        with running_node(configuration, tiny_bundle.folder) as node:
            wait_for(lambda: results() == every, node)
            assert send(1)["FailedInstancesCount"] == 0  # again: it is known
            with socket.create_connection(("127.0.0.1", port)) as silent:
                silent.sendall(b"\x01")
                assert node.end() == signal.SIGTERM
        assert results() == every
        for each in orthanc.datasets(Modality="SEG"):
            number = str(each.PatientID).removeprefix("patient")
            assert each.StudyInstanceUID == f"1.2.3.{number}"
            named = each.ReferencedSeriesSequence[0].ReferencedInstanceSequence
            assert {str(item.ReferencedSOPInstanceUID) for item in named} == {
                f"1.2.3.{number}.1.{k + 1}" for k in range(len(VALUES))
            }
