"""The DICOM node of `medals-rt listen`: receives series, segments them by rules, sends results.

From the bottom up:

- `configuration`: the file that says who may send what, and what is done with it;
- `spool`: what was received and made, on disk, so that nothing is lost at a restart;
- `transport`: the connections of those who call;
- `receiver`: the DICOM server (C-STORE, C-ECHO);
- `delivery`: results on their way to other nodes and DICOMweb servers;
- `worker`: the thread that owns the model;
- `command`: a running node, and the function that starts it.
"""
