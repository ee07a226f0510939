"""The services of this machine, `srpo up`: Prefect's server, a worker, and messages about late schedules.

supervisord (the package `supervisor`) runs them, restarts one that ends, and writes one log for each. A guardian of
`srpo_core/runtime/processes.py` runs supervisord and ends whatever is left when it ends. All files are in
`.srpo/services/`. Whether the services run is known from a lock that the guardian holds, so a file that a killed process
or a reboot has left never counts.
"""
