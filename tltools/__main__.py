"""Run the command line as `python -m tltools`."""

from tltools.cli import main

if __name__ == "__main__":
    main()
