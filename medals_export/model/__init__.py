"""The Medal S network in PyTorch, one file a part."""

from medals_export.model.config import ModelConfig
from medals_export.model.medals import MedalS

__all__ = ["MedalS", "ModelConfig"]
