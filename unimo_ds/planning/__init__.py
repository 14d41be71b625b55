"""What a run needs, before any GPU is booked."""
