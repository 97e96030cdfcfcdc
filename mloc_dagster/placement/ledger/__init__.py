"""The ledger: which run holds what of which worker, in the database of the Dagster instance.

A **lease** gives one run cores, memory and devices of one worker, all of them or none. Its holder says every now and
then that it lives; its `token` is a number that no earlier or later lease has. A holder whose token is gone has lost
what it held and must end: others may have it (fencing, Kleppmann 2016, "How to do distributed locking").
"""

from mloc_dagster.placement.ledger.ledger import Lease, Ledger, Seen

__all__ = ["Lease", "Ledger", "Seen"]
