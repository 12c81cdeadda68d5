"""Search methods that work on any space, under any objective."""
