"""The HTTP service of `medals-rt serve`: one resident model, a page, and an API for programs.

`medals_rt` finds it through the entry point `serve` and never imports it. From the bottom up:

- `settings`, `problems`, `metrics`: limits, errors as answers, figures;
- `reader_process`, `readers`: uploaded files are read in child processes first;
- `sessions`, `images`, `jobs`, `engine`: what clients own, and the thread that owns the model;
- `schemas`, `security`, `app`: the API, and what every request passes;
- `server`, `command`: a running server, and the command that starts it;
- `client`: a small client for Python programs.
"""
