"""Folders as tests want them."""

import os
from pathlib import Path
from typing import Any

import pytest


def close_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every folder of a name refuse to be read, also to root."""
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
