"""Using a trained model: captions and texts, search in a collection, a page for the browser."""
