"""A simulated region on one machine, for demonstrations and tests: ``terway lab``.

Unmodified daemon, plugin, drivers and SDK run against it. ``region`` is the process that serves the cloud's
APIs and wires the VPC (``fabric``); ``nodes`` sets up machines as a user would; ``runtime`` starts pods as
containerd does; ``state`` knows where everything is, and razes it. Product code never imports any of this.
"""
