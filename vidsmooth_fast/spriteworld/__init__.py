"""The procedural world of the embedded model: rendering, captions, data and training."""
