"""One file for each task; `task.py` is the contract that all of them fulfil."""
