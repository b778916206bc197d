"""`medals-rt bench`: how fast a bundle is on this machine, in every library that the machine has.

`run.run_bench` starts one child process a measurement (`worker`): no library shares memory or a
warm cache with another. `records` says what is measured, `pages` shows it.
"""
