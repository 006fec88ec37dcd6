"""``python -m leanfront`` is the command line."""

from leanfront.search.cli.app import main

if __name__ == "__main__":
    main()
