"""`recloom bench rmc`: where the time of RMC1-3 goes, and how far it is from what the machine allows."""
