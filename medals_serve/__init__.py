"""Services that keep a model resident; `medals_rt` finds them by entry points, never imports them.

`node` is the DICOM node of `medals-rt listen`. The rest is the HTTP service of `medals-rt serve`:
one resident model, a page, and an API for programs. From the bottom up:

- `settings`, `problems`, `metrics`: limits, errors as answers, figures;
- `reader_process`, `readers`: uploaded files are read in child processes first;
- `sessions`, `images`, `jobs`, `engine`: what clients own, and the thread that owns the model;
- `schemas`, `openapi`, `security`, `app`: the API, and what every request passes;
- `protocols`: what clients of other tools speak;
- `server`, `command`: a running server, and the command that starts it;
- `client`: a small client for Python programs.
"""
