"""Run the command `megabert` as `python -m megabert`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
