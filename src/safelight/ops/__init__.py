"""Declarations only: every op with its settings and words; what they do lies below, and is imported when an op runs."""
