"""pytest plugin of terway (filled in below)."""
