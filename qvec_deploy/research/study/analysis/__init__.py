"""Cells of a study -> what it answers: rows, statistics, tests, costs."""
