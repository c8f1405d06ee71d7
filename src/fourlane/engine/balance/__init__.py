"""Keep a group's experts in balance while it serves: count, decide, move weights, commit."""
