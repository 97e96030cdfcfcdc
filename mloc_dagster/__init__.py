"""MLOC: one YAML task file compiled into a Dagster job of assets."""

__version__ = "0.1.0"
