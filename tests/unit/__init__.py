"""Tests without privileges."""
