"""The page's scripts, as files."""

import hashlib
import re
from pathlib import Path

import pytest

import medals_serve

PAGE = Path(medals_serve.__file__).parent / "page"
NIIVUE = PAGE / "vendor" / "niivue"


def scripts() -> list[Path]:
    return sorted(PAGE.glob("*.js"))


def test_niivue_is_the_file_that_its_readme_names() -> None:
    stated = re.search(r"`([0-9a-f]{64})`", (NIIVUE / "README.md").read_text(encoding="utf-8"))
    assert stated
    assert hashlib.sha256((NIIVUE / "niivue.umd.js").read_bytes()).hexdigest() == stated[1]


def test_only_the_viewer_knows_niivue() -> None:
    users = [
        script.name
        for script in scripts()
        if "niivue" in script.read_text(encoding="utf-8").lower()
    ]
    assert users == ["viewer.js"]


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.name)
def test_texts_are_never_taken_for_html(script: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    assert not re.search(forbidden, script.read_text(encoding="utf-8"))
