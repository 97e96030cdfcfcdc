"""Alerts: what is told to whom when runs fail, wait, miss their service level, or workers fall silent."""
