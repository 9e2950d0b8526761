"""`python -m cli` is `orderflow`."""

from cli.main import main

main()
