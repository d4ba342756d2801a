"""Training, evaluation and prediction on real data."""

# Each is a module with a `framework.Task` named TASK.
TASKS = ("classify", "detect", "segment")
