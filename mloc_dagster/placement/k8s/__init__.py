"""Stages as Jobs of Kubernetes clusters. The package `kubernetes` is imported only when one is used."""
