"""The work itself: one recipe a file, run wherever a step is placed. Knows nothing of Dagster."""

from executors.lighter import load_less

load_less()
