"""Adapters: one inpainting method per file."""

import brushnet  # noqa: F401 - sets MKL_CBWR, which has to happen before torch computes anything
