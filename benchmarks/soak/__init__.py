"""Kills everything at random while tasks run, then looks whether each task came to its end and nothing is left.

`__main__` is the command, `tasks` what is run, `service` the home and its `mloc up`, `kills` what is killed when, and
`checks` what must hold in the end.
"""
