"""What `recloom bench shadowsync` and the experiment measure with."""
