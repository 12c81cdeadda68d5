"""Encoders of behaviour histories that people compare with, one paper a file."""
