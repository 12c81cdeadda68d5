"""Retrieval: models split into a user's part, an item's part and a scorer, and the indexes that search their items."""
