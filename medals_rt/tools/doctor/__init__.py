"""What this machine has and what would run on it: the command `medals-rt doctor`.

`machine` looks at processor, memory and GPUs, `libraries` at what is installed and whether it can
be imported, `diagnosis` puts them together and advises.
"""
