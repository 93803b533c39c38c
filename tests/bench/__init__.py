"""How fast it is, beside the Go plugins of containernetworking-plugins in the same run: ``make bench``."""
