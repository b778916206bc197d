"""What will be computed, before anything is: pure arithmetic on shapes, spacings and rules.

Rules that name a class, intensity windows and presets are data: ``policy.toml``.
"""
