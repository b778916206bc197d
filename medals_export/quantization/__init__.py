"""8-bit convolutions: which ones, with what ranges, and how graphs say so.

`number_format` holds the two formats, `layers` the convolutions that can be quantized and a network
whose chosen ones are, `ranges` and `calibration` what they see in real cases, `sensitivity` decides
which stay in 16 bits, and `qdq` writes the decision into graphs.
"""
