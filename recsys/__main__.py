"""`python -m recsys VERB …`."""

from recsys.command import main

main()
