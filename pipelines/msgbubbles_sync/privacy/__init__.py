"""Erase people, apply a stricter policy, and remove old rows."""
