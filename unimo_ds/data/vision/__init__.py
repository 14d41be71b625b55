"""Images: safe decoding, and conversion to regions by an extractor or to patches of their own pixels."""
