"""Where the files of a case lie."""

from pathlib import Path

import pytest

from medals_rt.pipeline.batch.paths import CasePaths, folder_of, role_in

OUT, REPORTS = Path("out"), Path("reports")
ALL = ("labels", "report", "preview", "lesions", "sr")


def test_each_role_has_its_place() -> None:
    paths = CasePaths("ward/a.b", OUT, REPORTS, ".nii.gz")
    roles = [role_in(folder, Path("x/liver.nii.gz")) for folder in ("class", "map")]
    assert [folder_of(role) for role in ("labels", *roles)] == [None, "class", "map"]
    assert dict(paths.of([*ALL, *roles])) == {
        "labels": OUT / "ward" / "a.b.nii.gz",
        "report": REPORTS / "reports" / "ward" / "a.b.json",
        "preview": REPORTS / "previews" / "ward" / "a.b.png",
        "lesions": OUT / "ward" / "a.b_lesions.nii.gz",
        "sr": OUT / "ward" / "a.b.sr.dcm",
        roles[0]: OUT / "ward" / "a.b" / "liver.nii.gz",
        roles[1]: OUT / "ward" / "a.b_probabilities" / "liver.nii.gz",
    }
    assert paths.record == REPORTS / ".medals-rt" / "ward" / "a.b.json"


@pytest.mark.parametrize(
    ("ending", "lesions"), [(".nrrd", ".nrrd"), (".dcm", ".nii.gz"), (".glb", ".nii.gz")]
)
def test_lesions_are_numbered_in_voxels(ending: str, lesions: str) -> None:
    paths = CasePaths("a", OUT, OUT, ending)
    assert paths.labels.name == f"a{ending}"
    assert paths.files()["lesions"].name == f"a_lesions{lesions}"


@pytest.mark.parametrize("role", ["class/../../etc/x", "map/a/b", "elsewhere", "labels/x"])
def test_no_role_leads_out_of_the_case(role: str) -> None:
    """Records are files, which may say anything."""
    paths = CasePaths("a", OUT, OUT, ".npz")
    assert all(path.parent in {OUT / "a", OUT / "a_probabilities"} for _, path in paths.of([role]))
