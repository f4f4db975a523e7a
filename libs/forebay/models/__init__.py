"""Model files: where they lie, what is in them, what the decoder inside looks like. Knows no torch and no network.

Start at `default_model.resolve_model` (which file) and `model_file.open_model` (what is in it). Nothing is imported
here, so that a process without numpy can still ask for `default_model`.
"""
