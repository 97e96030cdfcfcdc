"""Where published weights come from: a signed CycloneDX ML-BOM beside them, and its check.

`record` writes it when weights are published, `verify` holds files against it. Digests named `mloc:*` are those of
SPEC: over names and contents of several files. Hashes are of one file each.
"""

from mloc_dagster.provenance.record import write_provenance

__all__ = ["write_provenance"]
