"""A client of the service, `Client("http://127.0.0.1:3000", token).submit(text)`, and the shapes of all answers."""

from mloc_dagster.client.client import Client, Refused

__all__ = ["Client", "Refused"]
