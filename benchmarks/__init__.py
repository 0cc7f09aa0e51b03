"""The figures in the README, each by one command."""
