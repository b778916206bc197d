"""What was verified stands in the bundle, beside what other machines found."""

from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("onnx")

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import MachineRecord, dump_manifest
from medals_rt.common.errors import BundleError, InputError
from medals_rt.tools.verify import verify
from medals_rt.tools.verify.references import OwnGraphs
from medals_rt.tools.verify.verify import record_in_bundle, verify_bundle
from tests.cli.helpers import call
from tests.errors import raises
from tests.tools.verify.helpers import BOTH, manifest_of


def test_records_of_other_machines_are_kept(bundle: Bundle) -> None:
    outcome = verify_bundle(bundle, OwnGraphs(bundle), BOTH[:1], stages=(1,))
    (here,) = outcome.records
    elsewhere = msgspec.structs.replace(
        here, machine=MachineRecord("Linux", "x86_64", "another processor", 64, "NVIDIA H100")
    )
    record_in_bundle(bundle, [elsewhere])
    record_in_bundle(bundle, [here])
    again = msgspec.structs.replace(here, when="2030-01-01T00:00:00+00:00", passed=False)
    opened = record_in_bundle(bundle, [again])
    assert opened.manifest == manifest_of(bundle)
    assert opened.manifest.parity == (elsewhere, again)
    assert opened.hash == bundle.hash
    said = call("info", "--bundle", bundle.folder).stdout
    assert "NVIDIA H100, 64 cores" in said
    assert "2030-01-01" in said


def test_a_bundle_exchanged_meanwhile_gets_no_record(bundle: Bundle) -> None:
    outcome = verify_bundle(bundle, OwnGraphs(bundle), BOTH[:1], stages=(1,))
    other = msgspec.structs.replace(bundle.manifest, classes=bundle.manifest.classes[:1])
    (bundle.folder / "bundle.json").write_bytes(dump_manifest(other))
    with raises(BundleError, "bundle-changed"):
        record_in_bundle(bundle, outcome.records)


def test_unwritable_bundle_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("medals_rt.common.atomic_io.Path.touch", refuse)
    done = call("verify", "--bundle", bundle.folder, "--graphs-only")
    assert done.exit_code == 2
    assert "Permission denied" in done.stderr
    assert "--no-record" in done.stderr
    monkeypatch.setattr(verify, "atomic_output", refuse)
    with raises(InputError, "output-not-writable", "--no-record"):
        record_in_bundle(bundle, ())
