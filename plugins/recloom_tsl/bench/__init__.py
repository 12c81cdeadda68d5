"""`recloom bench tsl`: TBSM's training speed and memory beside the reference implementation's."""
