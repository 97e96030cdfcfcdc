"""The service on one port: Dagster's web UI and GraphQL, and REST below `/api/v1`; a token opens all of it.

A task that comes over HTTP is checked, written into the **intake** and answered; feeders, processes of their own, make
Dagster runs of what lies there, by the same way as `mloc submit`. To check a task takes a millisecond, to make a run of
it tens of them, and neither clients nor the UI wait for that.
"""
