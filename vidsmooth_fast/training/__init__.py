"""Tuning a model on one clip: objectives, data, the loop, average fusion."""
