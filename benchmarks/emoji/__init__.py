"""Does it learn, and from how few images: a study on the embedded model."""
