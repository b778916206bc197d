"""Hostile input: seeds of every format, mutations of them, and a process that watches the readers.

`make test` feeds a few hundred inputs; the long run is
`python -m tests.fuzz --inputs 10000 --seed 1`.
"""
