"""What addition cannot express: merge methods over ΔW, one layer at a time, and in the joint low-rank basis."""
