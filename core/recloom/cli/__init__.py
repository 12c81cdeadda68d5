"""The command line: `main` dispatches without importing torch; each command imports what it needs."""
