"""Where results go: a place inside the results folder, a URL, a bucket, a hub."""

from mloc_dagster.delivery.deliver import deliver
from mloc_dagster.delivery.errors import DeliveryError

__all__ = ["DeliveryError", "deliver"]
