"""A package: its system ends with the last of its tests."""
