"""What must not differ between machines: text files are UTF-8, whatever the locale says."""

import ast

from tests.paths import ROOT

FOLDERS = ("medals_rt", "medals_export", "medals_serve", "demo_training", "benchmarks", "tests")
ENCODING_AT = {"read_text": 0, "write_text": 1}
"""Where the encoding stands among the arguments, if it isn't named."""


def test_text_files_name_their_encoding() -> None:
    """Ruff's PLW1514 sees only paths whose type it can infer."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ENCODING_AT
        and len(node.args) <= ENCODING_AT[node.func.attr]
        and not any(word.arg == "encoding" for word in node.keywords)
    ]
    assert found == []
