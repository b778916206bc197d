"""From stored values to what the network sees: intensities and resampling.

Which class is seen in which intensity window, and a window's width and level, say the rules in
``planning/policy.toml``.
"""
