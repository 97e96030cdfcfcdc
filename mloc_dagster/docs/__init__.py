"""Reference pages that are made from the code: `python -m mloc_dagster.docs` writes them, `--check` compares."""
