"""What happens inside a task: one job's run from stage to stage, in a child process of its own."""
