"""Judging a video. Each file holds one kind of measure: what it computes, its unit, direction and cost."""
