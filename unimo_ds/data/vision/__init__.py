"""What becomes of an image: decoded safely, and made into regions by an extractor or into patches of its own pixels."""
