"""What was asked of the GPU, in order: what, and of which."""

log: list = []
