"""Run exported Medal S models: text prompts and a volume in, a segmentation out, without torch."""

__version__ = "0.1.0"
