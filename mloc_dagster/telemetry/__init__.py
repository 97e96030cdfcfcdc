"""What processes tell of themselves: logs as text or JSON, traces. Knows nothing of Dagster."""
