"""What runs long: the learner and the painter."""
