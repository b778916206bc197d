"""Protocols of clients that exist, served to them unmodified beside the API.

Each is a module with a `router`. A client is known by a secret as under /v1: what it takes for the
id of its image, session or lease is that of a session here, with the same limits and the same end.

- `frames`: arrays as these clients send them;
- `masks`: masks made of what was drawn;
- `multipart`: forms, read as they come;
- `sessions`: sessions under other names;
- `voxtell`: VoxTell's napari plug-in;
- `monailabel`: MONAI Label's clients, 3D Slicer's among them;
- `nninteractive`: clients of nnInteractive, version 2.
"""
