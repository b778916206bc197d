"""A service with the demo model, a browser on its page, and a scan."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import read_case
from tests.serve.page.visit import DEMO, Visit, visit
from tests.serve.serving import Running, running, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def served_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Bundle.open(DEMO), tmp_path_factory.mktemp("served")) as found:
        yield found


@pytest.fixture
def visited(browser: "Browser", served_demo: Running) -> Iterator[Visit]:
    engine = served_demo.server.engine
    for found in visit(browser, served_demo, viewport={"width": 1300, "height": 720}):
        found.open()
        yield found
        served_demo.gate.set()
        until(lambda: engine.jobs_waiting + engine.jobs_running == 0)  # the next test has its own


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo case as NIfTI whose axes run to the front, to the feet and to the right."""
    volume = read_case(DEMO / "cases" / "ct_anatomy.npz").volume
    spacing_h, spacing_w, spacing_d = volume.spacing_hwd_mm
    image = nibabel.Nifti1Image(
        volume.image_dhw.astype(np.int16).transpose(),  # to the left, the back and the head
        np.array(
            [[-spacing_w, 0, 0, 190], [0, -spacing_h, 0, 160], [0, 0, spacing_d, -40], [0, 0, 0, 1]]
        ),
    )
    turned = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt("AIR")
    )
    path = tmp_path_factory.mktemp("scan") / "ct of someone.nii.gz"
    nibabel.save(image.as_reoriented(turned), path)
    return path
