"""Task files as Dagster definitions; `mloc` is what `workspace.yaml` loads."""

import dagster

from mloc_dagster.definitions.repository import TaskFiles


# Dagster takes a function that returns RepositoryData; only its types do not say so.
@dagster.repository(name="mloc", description="One job a task file: of this workspace, and submitted.")  # pyright: ignore[reportArgumentType]
def mloc() -> TaskFiles:
    """The lazy repository over all task files."""
    return TaskFiles.of_environment()
