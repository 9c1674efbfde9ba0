"""``python -m upslope``."""

from upslope.cli import main

main()
