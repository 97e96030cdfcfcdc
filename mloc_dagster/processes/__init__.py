"""Processes that wait on a socket and fork others, with the standard library alone.

Used by the pool of run workers (`placement.launcher`) and by the warm process of stages (`executors.warm`).
"""
