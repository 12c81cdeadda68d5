"""Data modules and the readers behind them: synthetic clicks, Parquet shards, raw logs.

Import from the submodules; this package imports none of them, so that `recloom prepare` starts without torch.
"""
