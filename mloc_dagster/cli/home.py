"""Opens the home and its Dagster instance, or says why that cannot be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mloc_dagster.cli.screen import fail
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from dagster import DagsterInstance


def open_home() -> tuple[DagsterInstance, Home]:
    """Return the instance and the home that the environment names; ends the command when it cannot be used."""
    import yaml
    from dagster_shared.error import DagsterError

    from mloc_dagster.definitions.instance import hold_connections, open_instance

    home = Home.current()
    try:
        instance = open_instance(home)
        hold_connections(instance)
        return instance, home
    except (DagsterError, yaml.YAMLError) as error:
        folder = os.environ["DAGSTER_HOME"]
        reason = " ".join(str(error).split())[:300]
        fail(
            f"Dagster cannot be opened in {folder}: {reason}",
            f"check {folder}/dagster.yaml; DAGSTER_HOME must be the absolute path of a folder, or unset",
        )
    except OSError as error:
        fail(f"{home.root} cannot hold the state: {error.strerror}", "name another folder with --home or MLOC_HOME")
