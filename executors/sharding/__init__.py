"""Data-parallel work (`parallel`, SPEC §4): the rows of one stage in several processes, their results put together.

A shard is a child that the stage's own process forks: that process has resolved the stage and read its rows already,
so that 64 shards need no 64 interpreters, no 64 readings of the data set and no second copy of the rows. A shard has a
folder of its own below `.cache/shards`, fails alone and is tried again alone. To Dagster it stays one step with one
asset, its checks, its lock and its grant of devices; so it does in a container or a pod, which Dagster's dynamic steps
would need one of for each shard.
"""
