"""Train state, optimizer recipes, schedules and the training loop."""
