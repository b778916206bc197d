"""From stored values to what the network sees: intensities and resampling."""
