"""Where the checkout, the reference figures and the test data lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
DATA = ROOT / "tests" / "data"
NATIVE = ROOT / "tests" / "data" / "native"
"""Figures of the authors' script for raw NIfTI files; see the README there."""
