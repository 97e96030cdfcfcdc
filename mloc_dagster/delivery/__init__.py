"""Where results go: a place inside the results folder, a URL, a bucket, a hub."""

from mloc_dagster.delivery.deliver import DeliveryError, deliver

__all__ = ["DeliveryError", "deliver"]
