"""Speed measurements of HSNN."""
