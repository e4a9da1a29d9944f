"""Erases people, applies a stricter policy, and removes old rows."""
