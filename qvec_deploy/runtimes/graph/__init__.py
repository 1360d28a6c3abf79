"""Packed weights to the graph a target reads."""

OPSET = 20
"""ONNX opset of every exported model."""

DOMAIN = "qvec"
"""Domain of our operator."""

INPUT, OUTPUT = "images", "logits"
"""Names of the graph's input (batch, C, H, W) and output (batch, classes)."""
