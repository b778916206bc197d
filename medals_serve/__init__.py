"""Services that keep a model resident, found by `medals_rt` through its entry points only.

- `node`: a DICOM node, which segments what is sent to it (`medals-rt listen`).
"""
