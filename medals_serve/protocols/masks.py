"""Masks that are made here of what a client drew; they live as long as what they guide."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_serve.images import ServedImage, ServedMask, Upload, write_on_grid
from medals_serve.service import Service
from medals_serve.sessions import ClientSession, remove_folder


def write_mask(
    service: Service, owner: ClientSession, image: ServedImage, mask_kji: npt.NDArray[Any]
) -> ServedMask:
    """Write a mask, `(k, j, i)` on its image's own grid, as label 1.

    Raises
    ------
    ServiceError
        There is no room for it.
    """
    folder = image.folder / secrets.token_hex(8)
    folder.mkdir(mode=0o700)
    path = folder / "upload.nii.gz"
    try:
        write_on_grid(path, mask_kji.astype(np.uint8), service.cases.case(image).volume)
        service.sessions.keep(owner, path)
    except BaseException:
        remove_folder(folder)
        raise
    return ServedMask(Upload(folder.name, path, "drawing", path.stat().st_size), image.name, (1,))


def drop_mask(service: Service, owner: ClientSession, mask: ServedMask) -> None:
    """Remove a mask, whether it was made here or sent."""
    owner.masks.pop(mask.name, None)
    service.sessions.drop(owner, mask.upload.path.parent)
