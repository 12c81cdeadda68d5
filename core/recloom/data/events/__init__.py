"""Event logs (who did what when) to samples with behaviour histories, for `recloom prepare taobao` and the like.

`format` reads a log's events, `options` says what becomes of them, `spill` parts them by user on disk, `windows` cuts
each user's events into histories, `negatives` draws candidates that were not chosen, `run` does all of it.
"""
