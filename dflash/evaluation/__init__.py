"""Acceptance statistics, measurements by real decoding, and reports."""
