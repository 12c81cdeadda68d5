"""Raw formats of logs: what `recloom prepare` can read."""
