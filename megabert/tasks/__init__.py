"""One file per task; `task.py` holds the contract that all of them fill in."""
