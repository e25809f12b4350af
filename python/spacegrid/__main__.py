"""`python -m spacegrid` is the `spacegrid` command."""

from spacegrid.cli import main

if __name__ == "__main__":
    main()
