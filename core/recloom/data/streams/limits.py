"""What a stream can hold. Imports no torch: the raw formats use it."""

MAX_NODES = 2**31 - 1
LATEST_SECOND = 10**11  # in the year 5138: what is later counts milliseconds
