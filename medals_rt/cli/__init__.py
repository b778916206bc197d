"""The command `medals-rt`: one module a command, what they share in modules with an underscore."""

from medals_rt.cli._app import app, main

__all__ = ["app", "main"]
