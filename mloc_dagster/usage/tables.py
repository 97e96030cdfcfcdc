"""The tables of usage: runs and their entries, and sums of them by day, by month and of all time for quick answers.

Sums are kept on four levels: of all owners and projects, by owner, by project, by both. What is asked for is read on
the level that has the fewest of them.
"""

from __future__ import annotations

import sqlalchemy as sa

LOCK = 0x6D6C7573  # "mlus"
BY_OWNER, BY_PROJECT = 1, 2
"""A level is the sum of what is told apart on it; all else bears an empty name there."""
LEVELS = (0, BY_OWNER, BY_PROJECT, BY_OWNER | BY_PROJECT)
SUMS = (
    "device_us", "cpu_us", "prompt_tokens", "completion_tokens",
    "queue_ms", "run_ms", "succeeded", "failed", "canceled", "started", "retries", "slo_met", "slo_breached",
)  # fmt: skip
"""What is added up; all of it whole numbers."""

metadata = sa.MetaData()
runs = sa.Table(
    "mloc_usage_runs", metadata,
    sa.Column("run_id", sa.String(255), primary_key=True),
    sa.Column("updated", sa.Float, nullable=False, index=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("queue_ms", sa.BigInteger, nullable=False),
    sa.Column("run_ms", sa.BigInteger, nullable=False),
    sa.Column("started", sa.Boolean, nullable=False),
    sa.Column("retries", sa.Integer, nullable=False),
    sa.Column("slo_met", sa.Boolean),
)  # fmt: skip
entries = sa.Table(
    "mloc_usage", metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("run_id", sa.String(255), nullable=False, index=True),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("gpu", sa.String(200), nullable=False),
    sa.Column("device_us", sa.BigInteger, nullable=False),
    sa.Column("cpu_us", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)  # fmt: skip
series = sa.Table(
    "mloc_usage_series", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("gpu", sa.String(200), nullable=False),
    sa.UniqueConstraint("owner", "project", "gpu"),
)  # fmt: skip
sums = sa.Table(
    "mloc_usage_levels", metadata,
    sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("period", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("series", sa.Integer, primary_key=True, autoincrement=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
    sqlite_with_rowid=False,
)  # fmt: skip
