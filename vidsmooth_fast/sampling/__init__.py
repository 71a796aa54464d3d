"""Sampling: schedules of affine steps, windows over time, noise, inversion, smoothing, and the loop."""
