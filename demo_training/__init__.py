"""Training of the demo model on synthetic phantoms."""
