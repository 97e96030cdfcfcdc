"""Stages that start warm: forked from a process that has the libraries loaded, else a new interpreter as ever.

To load torch, Transformers and TRL takes seconds of CPU time, and each stage is a process of its own. The **warm
process** (`python -m executors.warm`) has them loaded and does nothing with them: it computes nothing, has one thread,
has not touched a GPU, and runs no code of a task. It forks one child for each stage, which takes in all respects the
place of `python -m executors.host JOB` (`child`); no process serves two stages.

One warm process serves a user's stages of all homes, as long as they would load the same under the same bounds
(`surroundings`). It ends when it was idle for MLOC_STAGE_POOL_IDLE seconds (default 120), when its socket goes away,
or when a file that it has loaded changes; stages that are going on stay, also when it is killed.
"""
