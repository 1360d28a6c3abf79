"""The clock, the statistics, accuracy, memory and the environment of a measurement.

Deliberately imports nothing: the memory probe runs inside this package and must not carry scipy in its
baseline.
"""
