"""Train, export and evaluate the language model that fourlane carries as package data.

Not imported by the package; run it with `python -m tools.train_bundled_model` from the root of the repository.
See README.md beside this file.
"""
