"""The paper's experiments and ours, each one command: `python -m experiments.NAME --output-dir runs/NAME`."""
