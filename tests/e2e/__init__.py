"""Tests that drive the whole of terway from outside."""
