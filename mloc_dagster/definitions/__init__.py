"""Task files as Dagster definitions; `mloc` is what `workspace.yaml` loads."""

import dagster

from mloc_dagster.definitions.repository import TaskFiles


@dagster.repository(name="mloc", description="One job a task file: of this workspace, and submitted.")
def mloc() -> TaskFiles:
    """The lazy repository over all task files."""
    return TaskFiles.of_environment()
