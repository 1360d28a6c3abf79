"""What a device can do at best: from shapes, bandwidth and arithmetic rate to predicted times."""
