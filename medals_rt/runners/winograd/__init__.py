"""3x3x3 convolutions of large volumes by Winograd's F(4, 3), beside OpenVINO."""
