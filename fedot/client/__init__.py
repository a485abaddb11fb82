"""What happens at a data owner's site."""
