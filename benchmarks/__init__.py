"""One module a question, each against a rival or a floor in the same run: python -m benchmarks.capture."""
