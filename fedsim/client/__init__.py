"""What a node does: local training of many clients at once, evaluation, and Flower's handlers."""
