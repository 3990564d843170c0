"""Which traffic a shadow takes."""
