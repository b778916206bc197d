"""What will be computed, before anything is: pure arithmetic on shapes, spacings and rules."""
