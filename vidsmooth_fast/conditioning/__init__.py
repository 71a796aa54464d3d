"""What steers the network: prompts over time."""
