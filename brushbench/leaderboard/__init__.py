"""Runs to tables: methods x metrics per split, in the paper's scales and arrows. Imports no torch."""

from brushbench.leaderboard.render import FORMATS, render
from brushbench.leaderboard.tables import Cell, Column, Row, Table, make_tables, open_runs

__all__ = ["FORMATS", "Cell", "Column", "Row", "Table", "make_tables", "open_runs", "render"]
