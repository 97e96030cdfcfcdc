"""Usage: what runs held of workers, for how long, for whom, at what price.

A run **holds** its devices and cores from its start to its end: nobody else could have them, whatever its steps did
meanwhile. So that is what counts, and the time in the queue does not. At each moment it is shared out evenly among
the steps that go on, attempt by attempt; what no step had (before the first, between two attempts) counts for the task
itself. Times are whole milliseconds and shares whole thousandths: sums are exact, in whatever order they are made.

Runs count when they are over. The tables are filled from Dagster's storage, as often as one likes, and can be made anew
from it at any time.
"""
