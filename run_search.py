"""`python run_search.py [SPACE] …` is `ddray search [SPACE] …`."""

import sys

from ddray.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
