"""`python -m cli` is `orderflow`."""

import gc

# Imports make a hundred thousand objects, of which none is garbage: to look for it took a fifth of the start.
gc.set_threshold(100_000)

from cli.main import main  # noqa: E402

main()
