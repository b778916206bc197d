"""What was asked of the card, in order: what, and of which."""

log: list = []
