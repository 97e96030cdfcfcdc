"""Steps on machines that only reach out: they ask the service for work, and bring log and result back by themselves.

The run's process puts an attempt down in `<home>/pull/attempts/` (`desk`, `carrier`); the service hands it to its
machine. There, `agent` asks, and `held` carries one attempt out in a process that outlives the agent.
"""
