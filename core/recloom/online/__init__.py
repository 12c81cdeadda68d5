"""Models that answer requests: engines, dynamic batching, an HTTP endpoint, and measurements of latency under load."""
