"""The ENI pool: the real pool and the real SDK against the simulated API."""
