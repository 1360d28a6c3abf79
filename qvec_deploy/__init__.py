"""Quantization-vector deployment: patch, quantize, pack, export, measure, release."""
