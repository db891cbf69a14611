"""Engines: who works on which batch, and where."""
