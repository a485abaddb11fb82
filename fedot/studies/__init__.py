"""What runs federations to learn something."""
