"""Stages in containers of Docker Engines, near and far. The package `docker` is imported only when one is used."""
