"""The paper's experiments and the demo, as plain functions over the public names."""
