"""For driver authors: the conformance suite, and fakes to test a driver with.

``pip install terway-core[testing]`` brings pytest, which then finds the fixtures of ``pytest_plugin``. The
suite is ``DriverConformance`` in ``terway_core.testing.conformance``. Importing this package loads nothing.
"""
