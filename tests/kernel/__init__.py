"""Tests with namespaces and real packets."""
