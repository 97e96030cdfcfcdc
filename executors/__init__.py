"""The work itself: one recipe a file, run wherever a step is placed. Knows nothing of Dagster."""
