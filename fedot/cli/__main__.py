"""`python -m fedot.cli`: the same as the `fedot` command."""

from fedot.cli.app import main

main()
