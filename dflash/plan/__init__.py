"""What a run will need, worked out before anything is paid for: memory by part, FLOPs, seconds, room on disk."""
