"""Donors: FP and quantization-aware fine-tunes of one base, whose difference is a quantization vector."""
