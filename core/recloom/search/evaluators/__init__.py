"""Evaluators: from scratch, by a supernet, by zero-cost proxies."""
