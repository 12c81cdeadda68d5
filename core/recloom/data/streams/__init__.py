"""Streams of events between two nodes at a time: what dynamic graphs are learned from.

A stream is held in flat arrays, in memory or mapped from files; `recloom prepare jodie`, `graph` and
`movielens_graph` write one, `PowerLawStream` generates one of any size.
"""
