"""Adapters: one inpainting method a file."""
