"""What clients of two protocols ask of one address: what the server is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from medals_rt.common.distribution import VERSION
from medals_serve.routes import Here

router = APIRouter(include_in_schema=False)


@router.get("/capabilities")
async def capabilities(service: Here) -> dict[str, Any]:
    """Return the model's name, the sentences that name its classes, and its notice."""
    return {
        "model": service.segmenter.bundle.name,
        "server": f"medals-rt {VERSION}",
        "prompts": [each["sentence"] for each in service.catalog.classes()],
        "notice": service.segmenter.bundle.notice,
    }
