"""What may go: artifacts of remote steps, work of ended attempts, old runs, pulled models; never what someone needs.

Each kind is looked for first, as `Found`, and looked at again under its lock when it is removed.
"""
